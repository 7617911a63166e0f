//! docs/METRICS.md is what the catalogue says.

use std::path::Path;

#[test]
fn metrics_page_is_up_to_date() {
    let path = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../docs/METRICS.md");
    let expect = telemetry::metrics_markdown();
    if std::env::var_os("KVMETRY_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expect).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == expect, "docs/METRICS.md is not what the catalogue says; run with KVMETRY_UPDATE_DOCS=1");
}
