//! `/api/v3/query_sql`: what is asked, how it is answered, what is said when it is not.

use serde_json::Map;

use super::super::backend::Format;
use super::*;

const SQL: &str = "/api/v3/query_sql";

#[tokio::test]
async fn get_and_post_ask_the_same() {
    let port = Port::open().await;
    let url = "/api/v3/query_sql?db=kvm&q=SELECT%201%2B%24n&format=csv&params=%7B%22n%22%3A1%7D&other=x";
    port.get(url).await;
    let body = r#"{"db":"kvm","q":"SELECT 1+$n","format":"csv","params":{"n":1},"other":[]}"#;
    port.json("POST", SQL, body).await;
    let expect = Query {
        database: "kvm".to_owned(),
        sql: "SELECT 1+$n".to_owned(),
        params: Map::from_iter([("n".to_owned(), json!(1))]),
        format: Format::Csv,
    };
    assert_eq!(*port.double.asked.lock().unwrap(), [expect.clone(), expect]);
}

#[tokio::test]
async fn formats() {
    let port = Port::open().await;
    for (name, accept, format, content_type) in [
        (None, None, Format::Json, "application/json"),
        (Some("json"), Some("text/csv"), Format::Json, "application/json"),
        (Some("jsonl"), None, Format::JsonLines, "application/jsonl"),
        (Some("csv"), None, Format::Csv, "text/csv; charset=utf-8"),
        (Some("pretty"), None, Format::Pretty, "text/plain; charset=utf-8"),
        (Some("parquet"), None, Format::Parquet, "application/vnd.apache.parquet"),
        (None, Some("*/*"), Format::Json, "application/json"),
        (None, Some("text/html, text/csv;q=0.5, */*"), Format::Csv, "text/csv; charset=utf-8"),
        (None, Some("application/jsonl"), Format::JsonLines, "application/jsonl"),
        (None, Some("text/plain"), Format::Pretty, "text/plain; charset=utf-8"),
    ] {
        port.reply(Reply::Text("the answer, in pieces"));
        let mut url = format!("{SQL}?db=a&q=b");
        if let Some(name) = name {
            url += &format!("&format={name}");
        }
        let mut request = port.client.get(port.url(&url));
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let got = Got::of(request.send().await.unwrap()).await;
        assert_eq!((got.status, got.body.as_str()), (200, "the answer, in pieces"));
        assert_eq!(got.header("content-type"), Some(content_type), "{name:?} {accept:?}");
        assert_eq!(port.double.asked.lock().unwrap().last().unwrap().format, format);
    }
    let got = port.get(&format!("{SQL}?db=a&q=b&format=xml")).await;
    got.is_error(400, "format \"xml\" is not known: use json, jsonl, csv, pretty, parquet");
}

#[tokio::test]
async fn wrong_questions() {
    let port = Port::open().await;
    port.get(SQL).await.is_error(400, "no database is given: db=NAME");
    port.get(&format!("{SQL}?q=SELECT%201")).await.is_error(400, "no database is given");
    port.get(&format!("{SQL}?db=a")).await.is_error(400, "no query is given: q=SQL");
    port.get(&format!("{SQL}?db=a&q=%20")).await.is_error(400, "no query is given: q=SQL");
    port.get(&format!("{SQL}?db=a&q=b&params=7")).await.is_error(400, "params is no JSON object");
    port.json("POST", SQL, "{").await.is_error(400, "the JSON of the body: EOF while parsing");
    port.json("POST", SQL, "[]").await.is_error(400, "the JSON of the body: ");
    port.json("POST", SQL, r#"{"db":1}"#).await.is_error(400, "expected a string");
    let got = port.json("POST", SQL, r#"{"db":"a","q":"b","params":{"n":[1]}}"#).await;
    got.is_error(400, "the parameter \"n\" must be a text, a number, true, false or null");
    port.post(SQL, r#"{"db":"a","q":"b"}"#).await.is_error(415, "Content-Type: application/json");
    assert_eq!(port.double.asked.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn whose_fault() {
    let port = Port::open().await;
    for (fault, status) in [
        (QueryFault::UnknownDatabase, 404),
        (QueryFault::UnknownTable, 400),
        (QueryFault::UnknownColumn, 500),
        (QueryFault::TwoStatements, 405),
        (QueryFault::NotReadOnly, 400),
        (QueryFault::Wrong, 400),
        (QueryFault::TooBig, 422),
        (QueryFault::TimedOut, 504),
        (QueryFault::Busy, 503),
        (QueryFault::Failed, 500),
    ] {
        port.reply(Reply::Fail(fault, "this, and do that"));
        let got = port.get(&format!("{SQL}?db=a&q=b")).await;
        got.is_json(status, json!({ "error": "this, and do that" }));
        assert_eq!(got.header("retry-after").is_some(), status == 503);
    }
}

#[tokio::test]
async fn no_rows_and_no_bytes() {
    let port = Port::open().await;
    port.reply(Reply::Text("[]"));
    port.get(&format!("{SQL}?db=a&q=b")).await.is_json(200, json!([]));
    port.reply(Reply::Text(""));
    let got = port.get(&format!("{SQL}?db=a&q=b&format=jsonl")).await;
    assert_eq!((got.status, got.body.as_str()), (200, ""));
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let port = Port::open().await;
    port.reply(Reply::Break("[{\"a\":1},"));
    let got = port.client.get(port.url(&format!("{SQL}?db=a&q=b"))).send().await.unwrap();
    assert_eq!(got.status(), 200);
    assert!(got.text().await.is_err(), "the client must see that it is not whole");
    // What fails before there is anything to show has a status.
    port.reply(Reply::Break(""));
    port.get(&format!("{SQL}?db=a&q=b")).await.is_error(500, "a file is damaged");
}

#[tokio::test]
async fn other_languages() {
    let port = Port::open().await;
    for (path, language) in
        [("/query", "InfluxQL"), ("/api/v3/query_influxql", "InfluxQL"), ("/api/v2/query", "Flux")]
    {
        let words = format!("{language} is not spoken here: ask in SQL, POST /api/v3/query_sql");
        port.get(&format!("{path}?db=a&q=SHOW%20DATABASES")).await.is_error(501, &words);
        port.post(path, "from(bucket:\"a\")").await.is_error(501, &words);
    }
}

/// The double's end of a query that is held by a client.
async fn drops(mut gone: mpsc::Receiver<()>) {
    assert_eq!(timeout(SOON, gone.recv()).await.expect("the query goes on"), None);
}

#[tokio::test]
async fn a_client_that_goes_ends_its_query() {
    let port = Port::open().await;
    let ask = format!("GET {SQL}?db=a&q=b HTTP/1.1\r\nhost: localhost\r\n\r\n");

    // While there is no answer yet.
    let (held, gone) = mpsc::channel(1);
    port.reply(Reply::Hang(held));
    let mut stream = port.connect().await;
    stream.write_all(ask.as_bytes()).await.unwrap();
    asked(&port, 1).await;
    drop(stream);
    drops(gone).await;

    // In the middle of the answer, while pieces come and while none does.
    for reply in [|held| Reply::Endless(1 << 16, held), Reply::Stall as fn(_) -> _] {
        let (held, gone) = mpsc::channel(1);
        port.reply(reply(held));
        let mut stream = port.connect().await;
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut some = [0; 100];
        stream.read_exact(&mut some).await.unwrap();
        drop(stream);
        drops(gone).await;
    }

    // A stream of HTTP/2, whose connection stays.
    let mut sender = h2_client(port.connect().await).await;
    for reply in [Reply::Hang, Reply::Stall as fn(_) -> _, |held| Reply::Endless(1 << 16, held)] {
        let (held, gone) = mpsc::channel(1);
        port.reply(reply(held));
        let before = port.double.asked.lock().unwrap().len();
        let url = port.url(&format!("{SQL}?db=a&q=b"));
        let sent = tokio::spawn(sender.send_request(request("GET", &url, &[], "")));
        asked(&port, before + 1).await;
        sent.abort();
        drop(sent.await);
        drops(gone).await;
    }
    sender.ready().await.unwrap();
    let health = sender.send_request(request("GET", &port.url("/health"), &[], "")).await.unwrap();
    assert_eq!(health.status(), 200);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let port = Port::with(|setup| setup.limits.take_within = Duration::from_millis(100)).await;
    let (held, gone) = mpsc::channel(1);
    port.reply(Reply::Endless(1 << 20, held));
    let mut stream = port.connect().await;
    let ask = format!("GET {SQL}?db=a&q=b HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    drops(gone).await;
    read_to_end(&mut stream).await;
}

#[tokio::test]
async fn a_turn_lasts_until_the_answer_is_taken() {
    let port = Port::with(|setup| {
        let limits = Limits { queries: 1, queries_waiting: 0, ..setup.limits };
        setup.turns = Arc::new(Turns::new(&limits));
    })
    .await;
    // More than the sockets hold.
    let bytes = 64 << 20;
    port.reply(Reply::Large(bytes));
    let mut stream = port.connect().await;
    let ask = format!("GET {SQL}?db=a&q=b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut some = [0; 100];
    stream.read_exact(&mut some).await.unwrap();
    let url = format!("{SQL}?db=a&q=b");
    port.get(&url).await.is_error(503, "too many queries at once; come again");
    assert!(read_to_end(&mut stream).await.len() > bytes);
    port.get(&url).await.is_json(200, json!([]));
}

#[tokio::test]
async fn so_many_queries_at_once() {
    let port = Port::with(|setup| {
        let limits = Limits { queries: 2, queries_waiting: 1, query_turn_within: SOON, ..setup.limits };
        setup.turns = Arc::new(Turns::new(&limits));
    })
    .await;
    let url = port.url(&format!("{SQL}?db=a&q=b"));
    let send = || tokio::spawn(port.client.get(&url).send());
    let (held, gone) = mpsc::channel(1);
    port.reply(Reply::Hang(held.clone()));
    port.reply(Reply::Hang(held));
    let running = [send(), send()];
    asked(&port, 2).await;
    // One waits, the next is refused; nobody is asked meanwhile.
    let (refused, waiting) = futures_util::future::select(send(), send()).await.factor_first();
    let refused = Got::of(refused.unwrap().unwrap()).await;
    refused.is_error(503, "too many queries at once; come again");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(port.double.asked.lock().unwrap().len(), 2);
    // Whoever goes makes place.
    for running in running {
        running.abort();
    }
    drops(gone).await;
    asked(&port, 3).await;
    assert_eq!(timeout(SOON, waiting).await.unwrap().unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_slow_client_gives_its_turn_to_one_that_waits() {
    let port = Port::with(|setup| {
        let slow = Duration::from_millis(50);
        let limits = Limits { queries: 2, slow, query_turn_within: SOON, ..setup.limits };
        setup.turns = Arc::new(Turns::new(&limits));
    })
    .await;
    let mut slow = Vec::new();
    for asks in 1..=2 {
        let (held, gone) = mpsc::channel(1);
        port.reply(Reply::Endless(1 << 20, held));
        let mut stream = port.connect().await;
        let ask = format!("GET {SQL}?db=a&q=b HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        asked(&port, asks).await;
        slow.push((stream, gone));
    }
    let answered = timeout(SOON, port.get(&format!("{SQL}?db=a&q=b"))).await.unwrap();
    assert_eq!(answered.status, 200);
    // One of the two is cut off, the other one goes on.
    let left = slow.into_iter().filter(|(_, gone)| !gone.is_closed()).count();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn a_query_does_not_wait_for_ever() {
    let port = Port::with(|setup| {
        let within = Duration::from_millis(50);
        let limits = Limits { queries: 1, query_turn_within: within, ..setup.limits };
        setup.turns = Arc::new(Turns::new(&limits));
    })
    .await;
    let (held, _gone) = mpsc::channel(1);
    port.reply(Reply::Hang(held));
    let url = format!("{SQL}?db=a&q=b");
    let running = tokio::spawn(port.client.get(port.url(&url)).send());
    asked(&port, 1).await;
    port.get(&url).await.is_error(503, "too many queries at once; come again");
    running.abort();
}
