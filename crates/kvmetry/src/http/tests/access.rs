//! Who is let in: tokens and scopes at every endpoint, and names, origins and addresses.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// A request that is good but for what the test adds: its answer is neither 400 nor one of the guard's.
fn good(path: &str, method: &str) -> (String, &'static str) {
    match (path, method) {
        ("/api/v3/write_lp" | "/write", _) => (format!("{path}?db=a"), "a v=1 1"),
        ("/api/v2/write", _) => (format!("{path}?bucket=a"), "a v=1 1"),
        ("/api/v3/query_sql", "GET") => (format!("{path}?db=a&q=b"), ""),
        ("/api/v3/query_sql", _) => (path.to_owned(), r#"{"db":"a","q":"b"}"#),
        (DATABASE, "POST" | "PUT") => (path.to_owned(), r#"{"db":"a"}"#),
        _ => (path.to_owned(), ""),
    }
}

impl Port {
    async fn ask(&self, method: &str, target: &str, body: &str, authorization: Option<&str>) -> Got {
        let mut request =
            self.client.request(method.parse().unwrap(), self.url(target)).body(body.to_owned());
        request = request.header("content-type", "application/json");
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        Got::of(request.send().await.unwrap()).await
    }
}

/// Every endpoint and method, with each way to show each token.
#[tokio::test]
async fn scopes_endpoints_and_ways_to_show_a_token() {
    let port = Port::open().await;
    let scopes = [Scope::Write, Scope::Read, Scope::Admin];
    let tokens = scopes.map(|scope| (Some(scope), port.token(scope.name(), &[scope])));
    let unknown = (None, format!("{}{}", tokens::PREFIX, "0".repeat(64)));
    let mut checked = 0;
    for endpoint in ENDPOINTS {
        for (method, needs) in endpoint.methods {
            let (target, body) = good(endpoint.path, method);
            for (scope, token) in tokens.iter().chain([&unknown]) {
                let basic = STANDARD.encode(format!("anybody:{token}"));
                let no_user = STANDARD.encode(format!(":{token}"));
                let ways = [
                    format!("Bearer {token}"),
                    format!("Token {token}"),
                    format!("Basic {basic}"),
                    format!("Basic {no_user}"),
                ];
                for authorization in ways {
                    let got = port.ask(method, &target, body, Some(&authorization)).await;
                    let at = format!("{method} {target} with {scope:?}: {got:?}");
                    match (scope, needs) {
                        (None, _) => {
                            got.is_json(401, json!({ "error": "the request was not authenticated" }));
                            assert_eq!(got.header("www-authenticate"), Some("Bearer realm=\"kvmetry\""));
                        }
                        (Some(Scope::Admin), _) | (_, Needs::Token) => {
                            assert!(![400, 401, 403].contains(&got.status), "{at}");
                        }
                        (Some(scope), Needs::Scope(needed)) if scope == needed => {
                            assert!(![400, 401, 403].contains(&got.status), "{at}");
                        }
                        (Some(scope), Needs::Scope(needed)) => {
                            let (scope, needed) = (scope.name(), needed.name());
                            let words =
                                format!("the token {scope:?} is for {scope}, this needs one for {needed}");
                            got.is_error(403, &words);
                        }
                        (Some(_), Needs::Nothing) => panic!("{at}"),
                    }
                    checked += 1;
                }
            }
            let got = port.ask(method, &target, body, None).await;
            got.is_json(401, json!({ "error": "the request was not authenticated" }));
        }
    }
    assert_eq!(checked, 19 * 16, "endpoints and methods times tokens and ways");
    // Who may not ask is not told what there is, nor how.
    port.ask("GET", "/nothing", "", None).await.is_error(401, "not authenticated");
    port.ask("DELETE", "/health", "", None).await.is_error(401, "not authenticated");
    let any = format!("Bearer {}", tokens[0].1);
    port.ask("GET", "/nothing", "", Some(&any)).await.is_error(404, "/nothing");
    port.ask("DELETE", "/health", "", Some(&any)).await.is_error(405, "use GET");
}

#[tokio::test]
async fn malformed_authorization() {
    let port = Port::open().await;
    let token = port.token("t", &[Scope::Admin]);
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    for authorization in [
        String::new(),
        token.clone(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Bearer  {token}"),
        format!("Bearer {token} x"),
        format!("bearer {token}"),
        format!("TOKEN {token}"),
        format!("basic {}", STANDARD.encode(format!("a:{token}"))),
        format!("Digest {token}"),
        basic(&token),
        format!("Basic {token}"),
        "Basic ####".to_owned(),
    ] {
        let got = port.ask("GET", "/health", "", Some(&authorization)).await;
        got.is_error(400, "the Authorization header is malformed: ");
        assert!(!got.body.contains(&token), "it is repeated: {}", got.body);
    }
    for head in [
        format!("authorization: Bearer {token}\r\nauthorization: Bearer {token}\r\n").into_bytes(),
        [b"authorization: Bearer \xe4\r\n".as_slice(), b""].concat(),
    ] {
        let head = [b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n", &head[..], b"\r\n"]
            .concat();
        port.raw(head).await.is_error(400, "the Authorization header is malformed");
    }
    // Where none is demanded nobody looks at it.
    std::fs::remove_file(port.tokens_file()).unwrap();
    port.ask("GET", "/health", "", Some("bearer x y z")).await.is_text(200, "OK");
}

#[tokio::test]
async fn a_token_in_the_query() {
    let port = Port::open().await;
    let token = port.token("t", &[Scope::Admin]);
    for (method, target, expect) in [
        ("POST", format!("/write?db=a&u=me&p={token}"), 204),
        ("POST", format!("/write?db=a&p={token}"), 204),
        ("GET", format!("/query?db=a&q=b&u=&p={token}"), 501),
        ("POST", "/write?db=a&p=".to_owned(), 401),
        ("POST", "/write?db=a&u=x&p=wrong".to_owned(), 401),
        ("POST", format!("/api/v3/write_lp?db=a&p={token}"), 401),
        ("POST", format!("/api/v2/write?bucket=a&p={token}"), 401),
        ("GET", format!("/api/v3/query_sql?db=a&q=b&p={token}"), 401),
        ("GET", format!("/health?p={token}"), 401),
        ("POST", format!("/write?db=a&token={token}"), 401),
    ] {
        let body = if method == "POST" { "a v=1 1" } else { "" };
        let got = port.ask(method, &target, body, None).await;
        assert_eq!(got.status, expect, "{method} {target}");
    }
    // The header goes before it.
    let got = port.ask("POST", &format!("/write?db=a&p={token}"), "a v=1", Some("Bearer wrong")).await;
    assert_eq!(got.status, 401);
}

#[tokio::test]
async fn tokens_come_and_go_while_it_runs() {
    let port = Port::open().await;
    port.get("/health").await.is_text(200, "OK");
    let token = port.token("first", &[Scope::Read]);
    port.get("/health").await.is_error(401, "not authenticated");
    let bearer = format!("Bearer {token}");
    port.ask("GET", "/health", "", Some(&bearer)).await.is_text(200, "OK");
    tokens::revoke(&port.tokens_file(), "first").unwrap();
    port.ask("GET", "/health", "", Some(&bearer)).await.is_error(401, "not authenticated");
    port.get("/health").await.is_error(401, "not authenticated");
    std::fs::write(port.tokens_file(), "rubbish").unwrap();
    let got = port.ask("GET", "/health", "", Some(&bearer)).await;
    got.is_error(503, "the tokens of this server cannot be read");
    assert!(!got.body.contains("tokens.json"), "{}", got.body);
    std::fs::remove_file(port.tokens_file()).unwrap();
    port.get("/health").await.is_text(200, "OK");
}

/// A pipe nobody writes to stands for a disk that hangs. This runtime has one thread: if that one waited for the disk,
/// nothing here would go on.
#[tokio::test]
async fn a_disk_that_hangs_holds_up_nothing_but_who_must_show_a_token() {
    let port = Port::with(|setup| setup.config.open_health = true).await;
    let made = std::process::Command::new("mkfifo").arg(port.tokens_file()).status().unwrap();
    assert!(made.success());
    let waits = |_| port.get("/api/v3/query_sql?db=kvmetry&q=SELECT+1");
    let waiting = futures_util::future::join_all((0..3).map(waits));
    let mut waiting = std::pin::pin!(waiting);
    let begun = tokio::time::Instant::now();
    tokio::select! {
        got = &mut waiting => panic!("{got:?}"),
        () = async { for _ in 0..10 { port.get("/health").await.is_text(200, "OK"); } } => {}
    }
    assert!(begun.elapsed() < SOON / 2);
    // In the end they are told.
    for got in timeout(SOON, waiting).await.unwrap() {
        got.is_error(503, "the tokens of this server cannot be read");
    }
    // The one thread that looks is let go, as by a disk that answers again, with rubbish.
    std::fs::write(port.tokens_file(), "{}").unwrap();
    std::fs::remove_file(port.tokens_file()).unwrap();
    let secret = port.token("a", &[Scope::Admin]);
    let query = port.client.get(port.url("/api/v3/configure/database?format=json")).bearer_auth(secret);
    assert_eq!(query.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn open_health_is_for_health_and_ping_only() {
    let port = Port::with(|setup| setup.config.open_health = true).await;
    port.token("t", &[Scope::Admin]);
    port.get("/health").await.is_text(200, "OK");
    assert_eq!(port.get("/ping").await.status, 200);
    port.ask("GET", "/ping", "", Some("Bearer wrong")).await.json();
    assert_eq!(port.get(DATABASE).await.status, 401);
    assert_eq!(port.get("/api/v3/query_sql?db=a&q=b").await.status, 401);
    let got = port.raw("GET /health HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").await;
    assert_eq!(got.status, 421, "the names are checked all the same");
}

#[tokio::test]
async fn beyond_loopback_it_demands_tokens() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let Err(error) = Port::try_with(|setup| setup.listen = everywhere).await else { panic!("it is open") };
    let words = "0.0.0.0:0 can be reached from other machines, and there is no token: make one with \
                 `kvmetry token --scope write` (kept in ";
    assert!(error.to_string().starts_with(words), "{error}");
    assert!(error.to_string().contains("or start with --insecure-no-auth if"), "{error}");

    // A file without tokens is none.
    let emptied = Port::try_with(|setup| {
        setup.listen = everywhere;
        tokens::make(&setup.tokens, Some("t"), &[Scope::Read], String::new()).unwrap();
        tokens::revoke(&setup.tokens, "t").unwrap();
    });
    assert!(matches!(emptied.await, Err(StartError::Unprotected { .. })));

    let mut secret = String::new();
    let port = Port::with(|setup| {
        setup.listen = everywhere;
        secret = tokens::make(&setup.tokens, Some("t"), &[Scope::Read], String::new()).unwrap().secret;
    });
    let port = port.await;
    let (url, bearer) =
        (format!("http://127.0.0.1:{}/health", port.server.address().port()), format!("Bearer {secret}"));
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(status(port.client.get(&url)).await, 401);
    assert_eq!(status(port.client.get(&url).header("authorization", &bearer)).await, 200);
    // Without the file everybody is refused here, where on loopback everybody is let in.
    std::fs::remove_file(port.tokens_file()).unwrap();
    assert_eq!(status(port.client.get(&url).header("authorization", &bearer)).await, 401);

    let port = Port::with(|setup| {
        setup.listen = everywhere;
        setup.config.insecure_no_auth = true;
        tokens::make(&setup.tokens, Some("t"), &[Scope::Read], String::new()).unwrap();
    });
    let port = port.await;
    let url = format!("http://127.0.0.1:{}/health", port.server.address().port());
    assert_eq!(status(port.client.get(&url)).await, 200);
}

/// Statuses over HTTP/1 and HTTP/2 of the same request: with this `Host` or `:authority` and these headers.
async fn both(port: &Port, target: &str, host: &str, headers: &[(&str, &str)]) -> [Got; 2] {
    let mut head =
        format!("POST {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 7\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let first = port.raw(format!("{head}\r\na v=1 1")).await;
    let second = port.h2(request("POST", &format!("http://{host}{target}"), headers, "a v=1 1")).await;
    [first, second]
}

#[tokio::test]
async fn names_and_origins() {
    let port = Port::with(|setup| {
        setup.config.allowed_hosts = vec!["kvm.example".to_owned(), "10.0.0.2".to_owned()];
    })
    .await;
    let own = port.server.address().to_string();
    let origin = format!("http://{own}");
    let evil = ("origin", "http://evil.example");
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, Headers<'_>, u16)] = &[
        (&own, &[], 204),
        ("localhost", &[], 204),
        ("localhost:1", &[], 204),
        ("[::1]:8177", &[], 204),
        ("kvm.example", &[], 204),
        ("KVM.example.:443", &[], 204),
        ("10.0.0.2", &[], 204),
        ("evil.example", &[], 421),
        ("127.0.0.1.evil.example", &[], 421),
        ("10.0.0.3:8177", &[], 421),
        (&own, &[("origin", &origin)], 204),
        (&own, &[("origin", &origin), ("sec-fetch-site", "same-origin")], 204),
        (&own, &[("sec-fetch-site", "none")], 204),
        (&own, &[("sec-fetch-site", "cross-site")], 403),
        (&own, &[("sec-fetch-site", "Cross-Site")], 403),
        (&own, &[("origin", &origin), ("sec-fetch-site", "cross-site")], 403),
        (&own, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 403),
        (&own, &[("sec-fetch-site", "same-site")], 403),
        (&own, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], 403),
        (&own, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")], 403),
        (&own, &[evil], 403),
        (&own, &[("origin", "null")], 403),
        (&own, &[("origin", "http://127.0.0.1:1")], 403),
        (&own, &[("origin", &origin), evil], 403),
        ("kvm.example", &[("origin", "https://kvm.example")], 204),
        ("kvm.example", &[("origin", "https://kvm.example:8443")], 403),
        ("evil.example", &[evil], 421),
    ];
    for (host, headers, expect) in cases {
        for got in both(&port, "/write?db=a", host, headers).await {
            assert_eq!(got.status, *expect, "{host} {headers:?}: {got:?}");
            match expect {
                421 => got.is_error(421, "add the name to allowed_hosts under [http]"),
                403 => got.is_error(403, "a web page of another origin may not use this server"),
                _ => {}
            }
        }
    }
    // Every path, also those that there are not.
    for target in ["/", "/health", "/ping", "/nothing", "/api/v3/write_lp?db=a", "/query"] {
        for got in both(&port, target, "evil.example", &[]).await {
            assert_eq!(got.status, 421, "{target}");
        }
        for got in both(&port, target, &own, &[("sec-fetch-site", "cross-site")]).await {
            assert_eq!(got.status, 403, "{target}");
        }
    }
}

#[tokio::test]
async fn odd_hosts() {
    let port = Port::open().await;
    let close = "connection: close\r\n\r\n";
    for (head, status, part) in [
        (format!("GET /health HTTP/1.1\r\n{close}"), 400, "has no Host header"),
        (format!("GET /health HTTP/1.0\r\n{close}"), 400, "has no Host header"),
        (format!("GET /health HTTP/1.1\r\nhost: \r\n{close}"), 400, "the Host header is malformed"),
        (format!("GET /health HTTP/1.1\r\nhost: a b\r\n{close}"), 400, "the Host header is malformed"),
        (format!("GET /health HTTP/1.1\r\nhost: me@localhost\r\n{close}"), 421, "is not known as"),
        (
            format!("GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n{close}"),
            421,
            "evil.example",
        ),
        (
            format!("GET /health HTTP/1.1\r\nhost: evil.example\r\nhost: localhost\r\n{close}"),
            421,
            "evil.example",
        ),
        (
            format!("GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\n{close}"),
            421,
            "evil.example",
        ),
        (
            format!("GET http://localhost/health HTTP/1.1\r\nhost: evil.example\r\n{close}"),
            421,
            "evil.example",
        ),
    ] {
        port.raw(head).await.is_error(status, part);
    }
    let head = format!("GET http://localhost/health HTTP/1.1\r\nhost: localhost\r\n{close}");
    port.raw(head).await.is_text(200, "OK");
    // Over HTTP/2 both may stand there, too.
    let got = port.h2(request("GET", "http://localhost/health", &[("host", "evil.example")], "")).await;
    assert_eq!(got.status, 421);
}

/// What is logged while the port is asked with tokens in every place.
#[test]
fn no_token_and_no_query_is_logged() {
    use std::sync::mpsc;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone)]
    struct Log(mpsc::Sender<Vec<u8>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (lines, logged) = mpsc::channel();
    let log = Log(lines);
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || log.clone());
    let levels = tracing_subscriber::filter::Targets::new().with_target("kvmetry", tracing::Level::TRACE);
    let subscriber = tracing_subscriber::registry().with(levels).with(layer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tracing::subscriber::with_default(subscriber, || {
        runtime.block_on(async {
            let port = Port::open().await;
            port.token("t", &[Scope::Read]);
            for target in ["/write?db=a&u=NOBODY&p=SECRET", "/query?p=SECRET", "/nothing?p=SECRET"] {
                assert_eq!(port.ask("POST", target, "a v=1", None).await.status, 401);
                let got = port.ask("POST", target, "a v=1", Some("Bearer SECRET")).await;
                assert_eq!(got.status, 401);
            }
            assert_eq!(port.ask("GET", "/health", "", Some("Basic SECRET")).await.status, 400);
        });
    });
    let text: Vec<u8> = logged.try_iter().flatten().collect();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("refused: the request was not authenticated"), "{text}");
    assert!(text.contains("path=\"/write\""), "{text}");
    assert!(!text.contains("SECRET") && !text.contains("NOBODY"), "{text}");
}
