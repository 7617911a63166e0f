//! Limits: bodies, heads, times, connections.

use std::io::Write as _;

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};

use super::super::limits::{MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, MAX_JSON_BYTES, MAX_URL_BYTES};
use super::*;

const SQL: &str = "/api/v3/query_sql";

/// A gzip of so many zero bytes.
fn bomb(bytes: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.finish().unwrap()
}

async fn post_gzip(port: &Port, body: impl Into<reqwest::Body>) -> Got {
    let request = port.client.post(port.url("/write?db=a")).header("content-encoding", "gzip").body(body);
    Got::of(request.send().await.unwrap()).await
}

#[tokio::test]
async fn a_bomb_is_stopped_while_it_is_unpacked() {
    let port = Port::open().await;
    let words = format!("max request size ({MAX_BODY_BYTES} bytes) exceeded");
    let packed = bomb(64 << 20);
    assert!(packed.len() < 100_000, "{}", packed.len());
    post_gzip(&port, packed.clone()).await.is_text(413, &words);
    // It is refused before the rest of it is there.
    let head = format!(
        "POST /write?db=a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-encoding: gzip\r\n\
         content-length: {}\r\n\r\n",
        packed.len()
    );
    port.raw([head.as_bytes(), &packed[..packed.len() / 2]].concat()).await.is_text(413, &words);
    // The same in members, each of which is small.
    let members = bomb(1 << 20).repeat(11);
    post_gzip(&port, members).await.is_text(413, &words);
    assert_eq!(port.written(), []);
}

#[tokio::test]
async fn empty_members_without_end() {
    let port = Port::open().await;
    let empty = GzEncoder::new(Vec::new(), Compression::fast()).finish().unwrap();
    let many = empty.repeat(MAX_BODY_BYTES / empty.len());
    post_gzip(&port, many).await.is_error(400, "the gzip body has more than 2000 members");
    let fewer = [empty.repeat(1_999), gzip_of("a v=1 1\n")].concat();
    post_gzip(&port, fewer).await.is_text(204, "");
}

fn gzip_of(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn more_raw_bytes_than_the_limit_though_they_unpack_to_few() {
    let port = Port::open().await;
    let member = |text: &str| {
        let builder = GzBuilder::new().filename(vec![b'x'; 6_000]);
        let mut encoder = builder.write(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let members = |count: usize| [member("a v=1 1\n"), member("").repeat(count)].concat();
    let (fits, larger) = (members(1_700), members(1_800));
    assert!(fits.len() < MAX_BODY_BYTES && larger.len() > MAX_BODY_BYTES);
    post_gzip(&port, fits).await.is_text(204, "");
    let words = format!("max request size ({MAX_BODY_BYTES} bytes) exceeded");
    post_gzip(&port, larger.clone()).await.is_text(413, &words);
    // Without a length nobody knows before.
    let mut all =
        b"POST /write?db=a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-encoding: gzip\r\n\
                    transfer-encoding: chunked\r\n\r\n"
            .to_vec();
    all.extend(format!("{:x}\r\n", larger.len()).into_bytes());
    all.extend(larger);
    all.extend(b"\r\n0\r\n\r\n");
    port.raw(all).await.is_text(413, &words);
    assert_eq!(port.written().len(), 1);
}

#[tokio::test]
async fn a_long_header_of_gzip() {
    let port = Port::open().await;
    // A name of the packed file that does not end.
    let mut body = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
    body.resize(9 << 20, b'x');
    post_gzip(&port, body).await.is_error(400, "the body is not the whole gzip");
}

#[tokio::test]
async fn deep_and_large_json() {
    let port = Port::open().await;
    let nested = |depth: usize| {
        format!(r#"{{"db":"a","q":"b","params":{{"n":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    port.json("POST", SQL, &nested(100)).await.is_error(400, "the parameter \"n\" must be a text");
    port.json("POST", SQL, &nested(200)).await.is_error(400, "recursion limit exceeded");
    port.json("POST", SQL, &nested(400_000)).await.is_error(400, "recursion limit exceeded");

    // What is not looked at is skipped without recursion.
    let other = nested(400_000).replace("params", "other");
    assert_eq!(port.json("POST", SQL, &other).await.status, 200);

    let sql = |bytes: usize| format!(r#"{{"db":"a","q":"{}"}}"#, "x".repeat(bytes - 17));
    assert_eq!(port.json("POST", SQL, &sql(MAX_JSON_BYTES)).await.status, 200);
    let words = format!("max request size ({MAX_JSON_BYTES} bytes) exceeded");
    port.json("POST", SQL, &sql(MAX_JSON_BYTES + 1)).await.is_error(413, &words);
}

#[tokio::test]
async fn all_bodies_together() {
    let port = Port::with(|setup| setup.limits.bodies_bytes = 64 << 10).await;
    let got = port.post("/write?db=a", "a v=1 1\n".repeat(9 << 10)).await;
    got.is_error(503, "too many bodies are being received at once; come again");
    assert_eq!(got.header("retry-after"), Some("1"));
    // What was taken of it is given back, each time.
    for _ in 0..20 {
        port.post("/write?db=a", "a v=1 1\n".repeat(4 << 10)).await.is_text(204, "");
    }
}

#[tokio::test]
async fn a_slow_body() {
    let port = Port::with(|setup| setup.limits.body_within = Duration::from_millis(100)).await;
    let head = "POST /write?db=a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\na v=1";
    let got = port.raw(head).await;
    got.is_error(408, "the body did not come whole within 0.1 s");
    assert_eq!(port.written(), []);
    // And one that breaks off is not taken for a whole one.
    let mut stream = port.connect().await;
    stream
        .write_all(b"POST /write?db=a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\na v=1 1\n")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    read_to_end(&mut stream).await;
    assert_eq!(port.written(), []);
}

#[tokio::test]
async fn a_slow_body_gives_its_room_to_others() {
    let port = Port::with(|setup| {
        setup.limits.bodies_bytes = 64 << 10;
        setup.limits.slow = Duration::from_millis(50);
    })
    .await;
    // Few bytes that unpack to many, and then nothing.
    let large = gzip_of(&"a v=1 1\n".repeat(5 << 10));
    let head = format!(
        "POST /write?db=a HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: gzip\r\nexpect: 100-continue\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        large.len() + 1
    );
    let mut stalls = port.connect().await;
    stalls.write_all(&[head.as_bytes(), &large].concat()).await.unwrap();
    let post = async || port.post("/write?db=a", "a v=1 1\n".repeat(5 << 10)).await.status;
    let others = async {
        while post().await != 503 {}
        // They come again, as they are told to.
        while post().await == 503 {}
    };
    timeout(SOON, others).await.expect("it keeps its room");
    let got = Got::raw(&read_to_end(&mut stalls).await);
    got.is_error(408, "the body came slowly, and others wait for its room");
}

#[tokio::test]
async fn a_slow_head() {
    for sent in ["", "G", "GET /health HTTP/1.1\r\nhost: loc", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let port = Port::with(|setup| setup.limits.first_request_within = Duration::from_millis(100)).await;
        let mut stream = port.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let got = read_to_end(&mut stream).await;
        assert!(!got.starts_with(b"HTTP/1.1 200"), "{sent:?}");
    }
}

#[tokio::test]
async fn a_second_head_that_is_slow_and_an_idle_connection() {
    let port = Port::with(|setup| setup.limits.idle_within = Duration::from_millis(100)).await;
    for more in ["", "GET /health HT"] {
        let mut stream = port.connect().await;
        let head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n{more}");
        stream.write_all(head.as_bytes()).await.unwrap();
        let bytes = read_to_end(&mut stream).await;
        assert_eq!(Got::raw(&bytes).body, "OK", "one answer, then it is closed");
    }
    let mut sender = h2_client(port.connect().await).await;
    sender.send_request(request("GET", &port.url("/health"), &[], "")).await.unwrap();
    let closed = async {
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, closed).await.expect("the idle connection of HTTP/2 stays open");
}

#[tokio::test]
async fn a_request_that_takes_long_is_not_idle() {
    let port = Port::with(|setup| {
        setup.limits.idle_within = Duration::from_millis(50);
        setup.limits.first_request_within = Duration::from_millis(50);
    })
    .await;
    // Longer than both.
    let mut stream = port.connect().await;
    stream
        .write_all(b"POST /write?db=a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8\r\n\r\n")
        .await
        .unwrap();
    let quiet = timeout(Duration::from_millis(300), stream.readable()).await;
    assert!(quiet.is_err(), "it was closed under a request");
    stream.write_all(b"a v=1 1\n").await.unwrap();
    assert_eq!(Got::raw(&read_to_end(&mut stream).await).status, 204);
}

#[tokio::test]
async fn long_urls_and_large_heads() {
    let port = Port::open().await;
    let padded = |bytes: usize| format!("/health?{}", "x".repeat(bytes - 8));
    port.get(&padded(MAX_URL_BYTES)).await.is_text(200, "OK");
    port.get(&padded(MAX_URL_BYTES + 1)).await.is_error(414, "use POST with a body");
    let head = |headers: &str| {
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
    };
    let large = format!("a: {}\r\n", "x".repeat(MAX_HEADER_BYTES));
    assert_eq!(port.raw(head(&large)).await.status, 431);
    let many: String = (0..MAX_HEADERS).map(|n| format!("a{n}: x\r\n")).collect();
    assert_eq!(port.raw(head(&many)).await.status, 431);
    let fewer: String = (0..MAX_HEADERS - 2).map(|n| format!("a{n}: x\r\n")).collect();
    assert_eq!(port.raw(head(&fewer)).await.status, 200);

    let url = port.url("/health");
    let long = "x".repeat(MAX_HEADER_BYTES);
    let mut sender = h2_client(port.connect().await).await;
    let refused = sender.send_request(request("GET", &url, &[("a", &long)], "")).await;
    assert!(refused.map_or(true, |response| response.status() == 431));
    let got = port.h2(request("GET", &port.url(&padded(MAX_URL_BYTES + 1)), &[], "")).await;
    got.is_error(414, "use POST with a body");
}

#[tokio::test]
async fn not_http() {
    let port = Port::open().await;
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"rubbish\r\n\r\n", b"\0\0\0\0\r\n\r\n"]
    {
        let mut stream = port.connect().await;
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let got = read_to_end(&mut stream).await;
        assert!(got.is_empty() || got.starts_with(b"HTTP/1.1 400"), "{got:?}");
    }
    port.get("/health").await.is_text(200, "OK");
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_a_new_one_and_the_others_stay() {
    let port = Port::with(|setup| setup.limits.connections = 4).await;
    let ask = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut stream = port.connect().await;
        stream.write_all(ask).await.unwrap();
        let mut some = [0; 16];
        stream.read_exact(&mut some).await.unwrap();
        idle.push(stream);
    }
    let close = "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    port.raw(close).await.is_text(200, "OK");
    let mut closed = 0;
    for mut stream in idle {
        // Whoever is there answers once more.
        let _ = stream.write_all(close.as_bytes()).await;
        let got = text(&read_to_end(&mut stream).await);
        closed += usize::from(!got.contains("HTTP/1.1 200"));
    }
    assert_eq!(closed, 1);
}

#[tokio::test]
async fn who_sends_nothing_keeps_nobody_out() {
    let port = Port::with(|setup| setup.limits.connections = 2).await;
    let silent = [port.connect().await, port.connect().await];
    let close = "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let got = timeout(port.limits.first_request_within / 2, port.raw(close)).await;
    got.expect("it waits as long as in an empty port").is_text(200, "OK");
    drop(silent);
}

/// A client of HTTP/2 may give no leave to send anything: RFC 9113, 6.5.2, SETTINGS_INITIAL_WINDOW_SIZE.
#[tokio::test]
async fn an_answer_that_is_not_taken_holds_no_place() {
    let port = Port::with(|setup| setup.limits.first_request_within = Duration::from_millis(100)).await;
    port.token("t", &[Scope::Read]);
    h2_takes_nothing(&port, "/health", 401).await;
    let port = Port::with(|setup| setup.limits.take_within = Duration::from_millis(100)).await;
    h2_takes_nothing(&port, "/health", 200).await;
}

#[tokio::test]
async fn busy_connections_do_not_make_room() {
    let port = Port::with(|setup| setup.limits.connections = 1).await;
    let (held, _gone) = mpsc::channel(1);
    port.reply(Reply::Hang(held));
    let mut busy = port.connect().await;
    let ask = format!("GET {SQL}?db=a&q=b HTTP/1.1\r\nhost: localhost\r\n\r\n");
    busy.write_all(ask.as_bytes()).await.unwrap();
    asked(&port, 1).await;
    let mut next = port.connect().await;
    next.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let quiet = timeout(Duration::from_millis(200), next.readable()).await;
    assert!(quiet.is_err(), "it was let in, or sent away");
    drop(busy);
    assert_eq!(Got::raw(&read_to_end(&mut next).await).status, 200);
}

#[tokio::test]
async fn a_refusal_is_seen_by_a_client_that_is_still_sending() {
    let port = Port::open().await;
    let token = port.token("t", &[Scope::Write]);
    // One that sends all of it before it looks.
    let post = |length: usize, more: &str| {
        let head = format!(
            "POST /write?db=a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}content-length: {length}\r\n\r\n"
        );
        [head.into_bytes(), vec![b'x'; length]].concat()
    };
    let not_authenticated = json!({ "error": "the request was not authenticated" });
    port.raw(post(8 << 20, "")).await.is_json(401, not_authenticated);
    let bearer = format!("authorization: Bearer {token}\r\n");
    let words = format!("max request size ({MAX_BODY_BYTES} bytes) exceeded");
    port.raw(post(19 << 20, &bearer)).await.is_text(413, &words);
    let coding = format!("{bearer}content-encoding: br\r\n");
    port.raw(post(8 << 20, &coding)).await.is_error(400, "Content-Encoding");
    let coding = format!("{bearer}content-encoding: gzip\r\n");
    port.raw(post(8 << 20, &coding)).await.is_error(400, "not the whole gzip");
    let reader = format!("authorization: Bearer {}\r\n", port.token("r", &[Scope::Read]));
    let to = |target: &str| {
        let request = String::from_utf8(post(8 << 20, &reader)).unwrap();
        request.replacen("/write?db=a", target, 1)
    };
    port.raw(to(SQL)).await.is_error(415, "application/json");
    port.raw(to("/query")).await.is_error(501, "InfluxQL");
    port.raw(to("/nothing")).await.is_error(404, "/nothing");
    // One that waits for a word is answered before it has sent anything.
    let head = "POST /write?db=a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 9000\r\n\r\n";
    let mut stream = port.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let bytes = read_to_end(&mut stream).await;
    assert!(bytes.starts_with(b"HTTP/1.1 401 "), "it is asked to send: {}", text(&bytes));
}

/// Over HTTP/1, where it can be seen that the server waits for the body: it asks for it.
#[cfg(feature = "store")]
#[tokio::test]
async fn a_call_of_flight_takes_its_turn_when_it_is_there() {
    use axum::body::Body;

    let port = async |change: fn(&mut Limits)| {
        Port::with(|setup| {
            change(&mut setup.limits);
            setup.turns = Arc::new(Turns::new(&setup.limits));
            let service = tower::service_fn(|request: Request| async {
                let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
                Ok(Response::new(Body::from(body)))
            });
            setup.mounts.push(flight::mount(service, Arc::clone(&setup.turns), &setup.limits));
        })
        .await
    };
    let call = "POST /arrow.flight.protocol.FlightService/DoGet HTTP/1.1\r\nhost: localhost\r\n\
                connection: close\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n";
    let one = port(|limits| limits.queries = 1).await;
    let mut slow = one.connect().await;
    slow.write_all(call.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    slow.read_exact(&mut asked).await.unwrap();
    assert_eq!(text(&asked), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(one.get(&format!("{SQL}?db=a&q=b")).await.status, 200);
    slow.write_all(b"ticket").await.unwrap();
    let got = Got::raw(&read_to_end(&mut slow).await);
    assert_eq!((got.status, got.body.contains("ticket")), (200, true));

    let impatient = port(|limits| limits.body_within = Duration::from_millis(50)).await;
    let got = impatient.raw(call).await;
    assert_eq!((got.status, got.header("grpc-status")), (200, Some("4")), "DEADLINE_EXCEEDED");
    let call = call.replace("expect: 100-continue\r\ncontent-length: 6", "content-length: 2000000");
    let got = one.raw([call.into_bytes(), vec![0; 2_000_000]].concat()).await;
    assert_eq!((got.status, got.header("grpc-status")), (200, Some("11")), "OUT_OF_RANGE");
}
