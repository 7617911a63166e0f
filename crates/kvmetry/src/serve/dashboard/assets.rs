//! The pages themselves, as `web/` builds them, within the program.
//!
//! Names of files below `assets/` have a hash of their content: browsers keep them for good. The others are asked for anew
//! each time, by their ETag. The `<base href="/">` of `index.html` becomes the path that a proxy serves it under.

use std::collections::BTreeMap;
use std::io::Write as _;

use axum::body::{Body, Bytes};
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, REFERRER_POLICY, VARY, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::RustEmbed;
use sha2::{Digest as _, Sha256};

/// What the front end's build leaves; without it there is only a page that says how to build it.
#[derive(RustEmbed)]
#[folder = "../../web/dist"]
#[allow_missing = true]
struct Dist;

const INDEX: &str = "index.html";
const BASE: &str = "<base href=\"/\">";
/// Nothing from elsewhere, nothing inline: what a VM's name holds can neither run nor be shown as a page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      worker-src 'self'; manifest-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'";
const NOT_BUILT: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>kvmetry</title>\
<h1>kvmetry</h1><p>This kvmetry was built without its pages. In its sources: <code>make web</code>, then build it \
again.<p>All else works: <code>kvmetry query</code>, and the API.</html>";

/// A file, ready to be sent.
#[derive(Debug)]
struct Asset {
    content_type: &'static str,
    etag: HeaderValue,
    plain: Bytes,
    gzip: Bytes,
}

/// All files.
#[derive(Debug)]
pub(crate) struct Assets {
    files: BTreeMap<String, Asset>,
}

impl Assets {
    /// For pages below this path: empty, or `/` and something.
    pub(crate) fn new(base_path: &str) -> Self {
        let mut files = BTreeMap::new();
        for name in Dist::iter() {
            let Some(file) = Dist::get(&name) else { continue };
            files.insert(name.to_string(), Asset::new(&name, file.data.into_owned(), base_path));
        }
        files
            .entry(INDEX.to_owned())
            .or_insert_with(|| Asset::new(INDEX, NOT_BUILT.as_bytes().to_vec(), base_path));
        Self { files }
    }

    /// The page, which finds out by itself what its path shows.
    pub(crate) fn index(&self, headers: &HeaderMap) -> Response {
        self.file(INDEX, headers)
    }

    /// A file by its name.
    pub(crate) fn file(&self, name: &str, headers: &HeaderMap) -> Response {
        let Some(asset) = self.files.get(name) else {
            return status(StatusCode::NOT_FOUND, Body::from("there is no such file"));
        };
        // A proxy may have made it a weak one.
        let is_this = |it: &str| it.trim().trim_start_matches("W/").as_bytes() == asset.etag.as_bytes();
        let is_among = |it: &HeaderValue| it.to_str().is_ok_and(|it| it.split(',').any(is_this));
        let is_known = headers.get_all(IF_NONE_MATCH).iter().any(is_among);
        let is_gzip =
            |it: &str| it.trim() == "gzip" || (it.trim().starts_with("gzip;") && !it.ends_with("q=0"));
        let takes_gzip = |it: &HeaderValue| it.to_str().is_ok_and(|it| it.split(',').any(is_gzip));
        let gzip = headers.get_all(ACCEPT_ENCODING).iter().any(takes_gzip);
        let mut response = if is_known {
            status(StatusCode::NOT_MODIFIED, Body::empty())
        } else {
            status(StatusCode::OK, if gzip { asset.gzip.clone() } else { asset.plain.clone() })
        };
        let is_hashed = name.starts_with("assets/");
        let cached = if is_hashed { "public, max-age=31536000, immutable" } else { "no-cache" };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(cached));
        headers.insert(ETAG, asset.etag.clone());
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
        if gzip && !is_known {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

fn status(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
}

impl Asset {
    fn new(name: &str, mut content: Vec<u8>, base_path: &str) -> Self {
        if name == INDEX {
            let text =
                String::from_utf8_lossy(&content).replace(BASE, &format!("<base href=\"{base_path}/\">"));
            content = text.into_bytes();
        }
        let hash = Sha256::digest(&content);
        let etag: String = hash.iter().take(12).map(|it| format!("{it:02x}")).collect();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        // Into memory: it cannot fail.
        let gzip = gzip.write_all(&content).and_then(|()| gzip.finish()).unwrap_or_default();
        Self {
            content_type: content_type(name),
            etag: HeaderValue::try_from(format!("\"{etag}\"")).unwrap_or(HeaderValue::from_static("\"\"")),
            plain: content.into(),
            gzip: gzip.into(),
        }
    }
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "txt" => "text/plain; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "json" | "webmanifest" => "application/json",
        _ => "application/octet-stream",
    }
}
