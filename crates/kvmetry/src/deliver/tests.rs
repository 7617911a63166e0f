use super::*;
pub(super) fn server(url: &str, api: Api) -> InfluxDb {
    InfluxDb {
        url: url.to_owned(),
        api,
        database: DATABASE.to_owned(),
        retention: Duration::from_secs(30 * 86_400),
        devices_database: None,
        devices_retention: Duration::from_secs(7 * 86_400),
        org: None,
        token_file: None,
        ca: None,
    }
}

/// What a form's `q` says.
pub(super) fn body_of(form: &str) -> String {
    let escaped = form.strip_prefix("q=").unwrap();
    percent_encoding::percent_decode_str(escaped).decode_utf8().unwrap().into_owned()
}
