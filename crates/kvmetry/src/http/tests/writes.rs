//! Every row of what InfluxDB 3 answers to a write.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::limits::MAX_BODY_BYTES;
use super::*;

const V3: &str = "/api/v3/write_lp?db=kvm";
const V2: &str = "/api/v2/write?bucket=kvm";
const V1: &str = "/write?db=kvm";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Port {
    async fn post_as(&self, target: &str, coding: &str, body: Vec<u8>) -> Got {
        let request = self.client.post(self.url(target)).header("content-encoding", coding).body(body);
        Got::of(request.send().await.unwrap()).await
    }
}

#[tokio::test]
async fn good_lines_are_taken() {
    let port = Port::open().await;
    let s = NOW_NS / 1_000_000_000;
    for (target, body) in [
        (V3, format!("a v=1 {s}")),
        (V3, format!("a v=1 {NOW_NS}\n")),
        ("/api/v3/write_lp?db=kvm&precision=second", format!("a v=1 {s}")),
        ("/api/v3/write_lp?db=kvm&precision=ms&accept_partial=false&no_sync=true", format!("a v=1 {s}000")),
        (V2, format!("a v=1 {NOW_NS}")),
        ("/api/v2/write?org=x&bucket=kvm&precision=us", format!("a v=1 {s}000000")),
        (V1, format!("a v=1 {NOW_NS}")),
        ("/write?db=kvm&precision=u&consistency=all&rp=autogen", format!("a v=1 {s}000000")),
    ] {
        port.post(target, body).await.is_text(204, "");
        assert_eq!(
            port.written().pop().unwrap(),
            ("kvm".to_owned(), format!("a v=1 {NOW_NS}\n")),
            "{target}"
        );
    }
    port.post("/write?db=kvm&rp=weekly", "a v=1 1").await.is_text(204, "");
    assert_eq!(port.written().pop().unwrap().0, "kvm/weekly");
    // InfluxDB 1 and 2 count nanoseconds where nothing is said.
    port.post(V1, "a v=1 5").await.is_text(204, "");
    assert_eq!(port.written().pop().unwrap().1, "a v=1 5\n");
}

#[tokio::test]
async fn some_lines_bad() {
    let port = Port::open().await;
    let body = "a v=1 1\n\n# comment\nno fields here\na v=2 2\na v=true 3\n";
    let data = json!([
        {
            "error_message": "Expected at least one field (syntax: measurement[,tags] fields [time]), got end of input",
            "line_number": 2,
            "original_line": "no fields here",
        },
        {
            "error_message": "invalid column type for column 'v', expected iox::column_type::field::float, \
                              got iox::column_type::field::boolean",
            "line_number": 4,
            "original_line": "a v=true 3",
        },
    ]);
    let got = port.post(&format!("{V3}&precision=ns"), body).await;
    assert_eq!(got.status, 400);
    let found = got.json();
    assert_eq!(found["error"], "partial write of line protocol occurred");
    assert_eq!(found["data"].as_array().unwrap().len(), 2);
    for place in 0..2 {
        assert_eq!(found["data"][place]["line_number"], data[place]["line_number"]);
        assert_eq!(found["data"][place]["original_line"], data[place]["original_line"]);
    }
    assert_eq!(found["data"][1], data[1]);
    assert_eq!(port.written().pop().unwrap().1, "a v=1 1\na v=2 2\n", "the good ones are stored");
    let first = found["data"][0].clone();
    let words = first["error_message"].as_str().unwrap().to_owned();

    let got = port.post(&format!("{V3}&precision=ns&accept_partial=false"), body).await;
    got.is_json(400, json!({ "error": "line protocol parsing error", "data": first }));
    let message = format!("unable to parse: line 2: {words}; nothing of this was written");
    let got = port.post(V2, body).await;
    got.is_json(400, json!({ "code": "invalid", "message": message }));
    let got = port.post(V1, body).await;
    got.is_json(400, json!({ "error": message, "data": first }));
    assert_eq!(port.written().len(), 1, "nothing of these is stored");
}

#[tokio::test]
async fn every_line_bad() {
    let port = Port::open().await;
    let got = port.post(V3, "no\nbut very long lines are told in part only").await;
    assert_eq!(got.status, 400);
    let found = got.json();
    assert_eq!(found["error"], "partial write of line protocol occurred");
    assert_eq!(found["data"][1]["original_line"], "but very long lines ");
    assert_eq!(port.written(), []);
}

#[tokio::test]
async fn more_bad_lines_than_are_told() {
    let port = Port::open().await;
    let got = port.post(V3, "x\n".repeat(telemetry::lines::limits::MAX_TOLD_ERRORS + 5)).await;
    assert_eq!(got.status, 400);
    let found = got.json();
    assert_eq!(found["data"].as_array().unwrap().len(), telemetry::lines::limits::MAX_TOLD_ERRORS);
    assert_eq!(found["untold_lines"], 5);
}

#[tokio::test]
async fn nothing_in_it() {
    let port = Port::open().await;
    for body in ["", "\n\n", "# only a comment\n"] {
        port.post(V3, body).await.is_text(400, "incoming write was empty");
        port.post(V1, body).await.is_text(400, "incoming write was empty");
        let got = port.post(V2, body).await;
        got.is_json(400, json!({ "code": "invalid", "message": "incoming write was empty" }));
    }
    port.post_as(V3, "gzip", Vec::new()).await.is_text(400, "incoming write was empty");
    port.post_as(V3, "gzip", gzip(b"")).await.is_text(400, "incoming write was empty");
}

#[tokio::test]
async fn wrong_parameters() {
    let port = Port::open().await;
    let body = "a v=1";
    for target in ["/api/v3/write_lp", "/api/v3/write_lp?db="] {
        port.post(target, body).await.is_text(400, "no database is given: POST /api/v3/write_lp?db=NAME");
    }
    port.post("/write", body).await.is_text(400, "no database is given: POST /write?db=NAME");
    let got = port.post("/api/v2/write?db=kvm", body).await;
    let message = "no database is given: POST /api/v2/write?bucket=NAME";
    got.is_json(400, json!({ "code": "invalid", "message": message }));
    let got = port.post(&format!("{V3}&precision=h"), body).await;
    got.is_text(400, "unknown precision \"h\": auto, s, ms, us or ns is expected");
    let got = port.post(&format!("{V3}&accept_partial=yes"), body).await;
    got.is_text(400, "accept_partial=\"yes\": expected true or false");
    // A name that cannot be: JSON.
    for name in ["..%2Fetc", "a%20b", "%00", "_a", "a/b/c"] {
        port.post(&format!("/api/v3/write_lp?db={name}"), body).await.is_error(400, "the database name");
    }
    assert_eq!(port.written(), []);
}

#[tokio::test]
async fn codings() {
    let port = Port::open().await;
    let line = |n: usize| format!("a v={n} {n}\n");
    let members: Vec<u8> = (1..=3).flat_map(|n| gzip(line(n).as_bytes())).collect();
    for (coding, body, expect) in [
        ("gzip", gzip(line(7).as_bytes()), line(7)),
        ("x-gzip", gzip(line(7).as_bytes()), line(7)),
        ("GZIP", members, [line(1), line(2), line(3)].concat()),
        ("identity", line(7).into_bytes(), line(7)),
        ("gzip", [gzip(b""), gzip(line(7).as_bytes()), gzip(b"")].concat(), line(7)),
    ] {
        port.post_as(V1, coding, body).await.is_text(204, "");
        assert_eq!(port.written().pop().unwrap().1, expect, "{coding}");
    }
    for coding in ["deflate", "zstd", "br", "gzip, gzip"] {
        let got = port.post_as(V3, coding, gzip(b"a v=1")).await;
        got.is_error(400, &format!("Content-Encoding {coding:?} is not known here: use gzip or identity"));
    }
}

#[tokio::test]
async fn broken_gzip() {
    let port = Port::open().await;
    let good = gzip(b"a v=1 1\n");
    let mut flipped = good.clone();
    let crc = flipped.len() - 6;
    flipped[crc] ^= 1;
    for body in [
        good[..good.len() - 1].to_vec(),
        good[..5].to_vec(),
        flipped,
        b"a v=1 1\n".to_vec(),
        [&good[..], b"rubbish and more of it"].concat(),
        [&good[..], &good[..12]].concat(),
    ] {
        let got = port.post_as(V3, "gzip", body).await;
        got.is_error(400, "the body is not the whole gzip that its Content-Encoding says");
    }
    assert_eq!(port.written(), []);
}

#[tokio::test]
async fn not_text() {
    let port = Port::open().await;
    port.post(V3, b"a v=\"\xff\"".to_vec()).await.is_error(400, "the body is not UTF-8 text (byte 5)");
}

#[tokio::test]
async fn too_large() {
    let port = Port::open().await;
    let words = format!("max request size ({MAX_BODY_BYTES} bytes) exceeded");
    let mut fits = b"a v=1 1\n#".to_vec();
    fits.resize(MAX_BODY_BYTES, b'x');
    port.post(V1, fits.clone()).await.is_text(204, "");
    port.post_as(V1, "gzip", gzip(&fits)).await.is_text(204, "");

    let larger = [fits, vec![b'\n']].concat();
    // Without a length, so that nobody knows before.
    let chunked = |target: &str| {
        let mut all = format!(
            "POST {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        .into_bytes();
        for piece in larger.chunks(100_000) {
            all.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            all.extend(piece);
            all.extend(b"\r\n");
        }
        all.extend(b"0\r\n\r\n");
        all
    };
    for target in [V3, V1] {
        port.post(target, larger.clone()).await.is_text(413, &words);
        port.raw(chunked(target)).await.is_text(413, &words);
        port.post_as(target, "gzip", gzip(&larger)).await.is_text(413, &words);
    }
    let got = port.post(V2, larger.clone()).await;
    got.is_json(413, json!({ "code": "request too large", "message": words }));
    let eleven_mib = vec![b'x'; 11 << 20];
    port.post(V3, eleven_mib).await.is_text(413, &words);
    assert_eq!(port.written().len(), 2);
}

#[tokio::test]
async fn what_this_side_cannot_do() {
    let port = Port::open().await;
    let busy = || WriteFailure::Busy { retry_after: Duration::from_secs(3) };
    let full = || WriteFailure::Disk("no space left in /var/lib/kvmetry: make some".to_owned());
    let cases = [
        (busy(), 503, Some("3"), "the journal is behind"),
        (
            full(),
            503,
            Some("30"),
            "nothing of this was written: no space left in /var/lib/kvmetry: make some",
        ),
        (WriteFailure::Failed("EIO".to_owned()), 500, None, "nothing of this was written: EIO"),
        (WriteFailure::TooLarge("send it in parts".to_owned()), 413, None, "send it in parts"),
        (WriteFailure::TooMany("the 2001st table".to_owned()), 422, None, "the 2001st table"),
    ];
    for (failure, status, retry, part) in cases {
        for target in [V3, V1] {
            *port.double.write_fails.lock().unwrap() = Some(failure.clone());
            let got = port.post(target, "a v=1").await;
            got.is_error(status, part);
            assert_eq!(got.header("retry-after"), retry);
        }
        *port.double.write_fails.lock().unwrap() = Some(failure);
        let got = port.post(V2, "a v=1").await;
        assert_eq!((got.status, got.header("retry-after")), (status, retry));
        assert!(got.json()["message"].as_str().unwrap().contains(part), "{got:?}");
    }
}

#[tokio::test]
async fn over_http2_too() {
    let port = Port::open().await;
    let got = port.h2(request("POST", &port.url(V3), &[], "a v=1 1\nx")).await;
    assert_eq!((got.status, &got.json()["data"][0]["line_number"]), (400, &json!(2)));
    assert_eq!(port.written().len(), 1);
}
