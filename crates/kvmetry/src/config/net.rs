//! What is said of InfluxDB servers and of the HTTP port: URLs, addresses, names.

use std::net::{IpAddr, SocketAddr};

use telemetry::lines::limits::MAX_DATABASE_NAME_BYTES;

use super::keys::{DEFAULT_LISTEN, DEVICES_RETENTION};
use super::layers::Given;
use super::{Api, Flags, Http, HttpTls, InfluxDb, MAX_INFLUXDB, TOKEN_VARIABLE, all_of, before};

pub(super) fn influxdb(
    given: &[Given],
    token: bool,
    warnings: &mut Vec<String>,
    problems: &mut Vec<String>,
) -> Vec<InfluxDb> {
    let mut found: Vec<InfluxDb> = Vec::new();
    for one in all_of(given, "influxdb") {
        let place = before(one.place.as_ref());
        let Some(url_place) = one.place("url") else {
            problems
                .push(format!("{place}[[influxdb]] has no url, for example url = \"http://127.0.0.1:8181\""));
            continue;
        };
        let url = match check_url(&one.text("url")) {
            Ok(url) => url,
            Err(problem) => {
                problems.push(format!("{url_place}: url: {problem}"));
                continue;
            }
        };
        let api = match one.text("api").as_str() {
            "v2" => Api::V2,
            "v1" => Api::V1,
            _ => Api::V3,
        };
        let org = Some(one.text("org")).filter(|org| !org.is_empty());
        if let (Some(place), Some(_), false) = (one.place("org"), &org, api == Api::V2) {
            problems.push(format!("{place}: [[influxdb]] org is for api = \"v2\" only; remove one of them"));
        }
        let database = one.text("database");
        if let (Some(place), true) = (one.place("database"), database.is_empty()) {
            problems.push(format!("{place}: [[influxdb]] database must not be empty"));
        }
        let devices_database = Some(one.text("devices_database")).filter(|name| !name.is_empty());
        for (key, name) in [("database", Some(&database)), ("devices_database", devices_database.as_ref())] {
            if let (Some(place), Some(name)) = (one.place(key), name)
                && name.len() > MAX_DATABASE_NAME_BYTES
            {
                problems.push(format!(
                    "{place}: [[influxdb]] {key} is longer than {MAX_DATABASE_NAME_BYTES} bytes"
                ));
            }
        }
        if let (Some(place), true) =
            (one.place("devices_database"), devices_database.as_ref() == Some(&database))
        {
            problems.push(format!(
                "{place}: [[influxdb]] devices_database {database:?} is the database of all the others, too; remove \
                 it, or name another"
            ));
        }
        let devices_retention = one.duration("devices_retention");
        if let (Some(place), None, false) =
            (one.place("devices_retention"), &devices_database, devices_retention == DEVICES_RETENTION)
        {
            problems.push(format!(
                "{place}: [[influxdb]] devices_retention is for a devices_database, and there is none"
            ));
        }
        for key in ["retention", "devices_retention"] {
            if let (Some(place), Api::V2) = (one.place(key), api) {
                problems.push(format!(
                    "{place}: [[influxdb]] {key} has no use with api = \"v2\", whose buckets are not made here; \
                     remove it"
                ));
            }
        }
        let server = InfluxDb {
            url: url.text,
            api,
            database,
            retention: one.duration("retention"),
            devices_database,
            devices_retention,
            org,
            token_file: one.path("token_file"),
            ca: one.path("ca"),
        };
        if let (Some(place), false) = (one.place("ca"), url.secure || server.ca.is_none()) {
            problems.push(format!("{place}: [[influxdb]] ca has no use with an http url; write https"));
        }
        if (token || server.token_file.is_some()) && !url.secure && !url.loopback {
            warnings.push(format!("{} gets its token unencrypted: its url is http, not https", server.url));
        }
        if found.iter().any(|other| other.url == server.url && other.database == server.database) {
            problems.push(format!(
                "{place}[[influxdb]] {} with database {:?} stands twice",
                server.url, server.database
            ));
        }
        found.push(server);
    }
    if found.len() > MAX_INFLUXDB {
        problems.push(format!("{} [[influxdb]] are configured, the limit is {MAX_INFLUXDB}", found.len()));
    }
    // Two databases of one server may well have one token; two servers share it hardly on purpose.
    let mut share: Vec<_> =
        found.iter().filter(|one| one.token_file.is_none()).map(|one| one.url.as_str()).collect();
    share.sort_unstable();
    share.dedup();
    if token && share.len() > 1 {
        warnings.push(format!(
            "the token of {TOKEN_VARIABLE} goes to each server without token_file: {}; give each its own token_file",
            share.join(", ")
        ));
    }
    found
}

pub(super) fn http(given: &Given, flags: &Flags, problems: &mut Vec<String>) -> Http {
    let listen = match check_listen(&given.text("listen")) {
        Ok(listen) => listen,
        Err(problem) => {
            problems.push(format!("{}[http] listen: {problem}", before(given.place("listen"))));
            None
        }
    };
    let base_path = given.text("base_path").trim_end_matches('/').to_owned();
    let is_path =
        |path: &str| path.starts_with('/') && !path.contains(['?', '#', '%']) && !path.contains("//");
    if !base_path.is_empty() && !is_path(&base_path) {
        let place = before(given.place("base_path"));
        problems.push(format!("{place}[http] base_path {base_path:?}: expected a path such as \"/kvmetry\""));
    }
    let allowed_hosts = given.list("allowed_hosts");
    for host in allowed_hosts.iter().filter(|host| !is_host(host)) {
        problems.push(format!(
            "{}[http] allowed_hosts {host:?}: expected a name or address without scheme, port and path",
            before(given.place("allowed_hosts"))
        ));
    }
    let tls = match (given.path("tls_cert"), given.path("tls_key")) {
        (Some(certificate), Some(key)) => Some(HttpTls { certificate, key }),
        (None, None) => None,
        (certificate, _) => {
            let (has, lacks) =
                if certificate.is_some() { ("tls_cert", "tls_key") } else { ("tls_key", "tls_cert") };
            problems.push(format!("{}[http] {has} stands without {lacks}", before(given.place(has))));
            None
        }
    };
    Http {
        listen,
        base_path,
        allowed_hosts,
        tls,
        tokens: given.path("tokens"),
        open_health: given.bool("open_health"),
        insecure_no_auth: flags.insecure_no_auth,
    }
}

fn check_listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    // Whatever the resolver says of it: localhost is this machine (RFC 6761).
    let port = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let address = port.map(|port| SocketAddr::from(([127, 0, 0, 1], port))).or_else(|| text.parse().ok());
    address.map(Some).ok_or_else(|| {
        format!("{text:?}: expected an IP address and a port such as {DEFAULT_LISTEN:?} or \"[::]:8177\", or \"off\"")
    })
}

fn is_host(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let is_name = || text.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_'));
    bare.parse::<IpAddr>().is_ok() || is_name()
}

struct CheckedUrl {
    text: String,
    secure: bool,
    loopback: bool,
}

/// The message never repeats the URL: what is wrong with it may be that a secret stands in it.
fn check_url(text: &str) -> Result<CheckedUrl, String> {
    let url = reqwest::Url::parse(text.trim()).map_err(|error| {
        let hint = if text.contains("://") { "" } else { "; it begins with http:// or https://" };
        format!("not a URL: {}{hint}", error.to_string().to_lowercase())
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        let scheme = url.scheme();
        return Err(format!("{scheme}: is no scheme of InfluxDB; it begins with http:// or https://"));
    }
    let instead = format!(
        "it could be read by others; put the token into token_file or {TOKEN_VARIABLE} and remove it here"
    );
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("a user or password does not belong into a URL: {instead}"));
    }
    let secret = |key: &str| matches!(key, "token" | "p" | "u" | "password" | "q" | "auth" | "authorization");
    if url.query_pairs().any(|(key, _)| secret(&key.to_lowercase())) {
        return Err(format!("a token or password does not belong into a URL: {instead}"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(
            "give the server's address only, without ? and #; the database has its own key".to_owned()
        );
    }
    let path = url.path().trim_end_matches('/');
    if ["/write", "/write_lp", "/query", "/query_sql"].iter().any(|end| path.ends_with(end)) {
        return Err("give the server's address only, without the path of its API".to_owned());
    }
    Ok(CheckedUrl {
        text: base(url.as_str()).to_owned(),
        secure: url.scheme() == "https",
        loopback: is_loopback(&url),
    })
}

/// Whether a URL's host is this machine.
pub(crate) fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn base(url: &str) -> &str {
    url.trim().trim_end_matches('/')
}
