//! docs/METRICS.md, made from the catalogue.

use std::fmt::Write as _;

use crate::catalogue::{
    COLLECTOR, COLLECTOR_FIELDS, DISK_FIELDS, DISK_SUM_PREFIX, Field, INPUT_FIELDS, Measurement, NIC_FIELDS,
    NIC_SUM_PREFIX, Unit, VM_DEVICES, VM_EVENTS, VM_EVENTS_FIELDS, VM_FEATURES, VM_FEATURES_FIELDS,
    VM_METRICS, VM_METRICS_FIELDS, VM_TOTALS, VM_TOTALS_FIELDS, WHOLENESS_FIELDS,
};

const HEAD: &str = "\
# Metrics

Generated from `crates/telemetry/src/catalogue.rs`; a test compares the two.

All fields are integers unless something else is said. Counters are cumulative: a counter that steps back has started
anew, and its increase over that step is unknown. A value that could not be read in a cycle is left out of the line; a
value that the hypervisor never gives is written as 0. With `tag_style = \"reference\"` the tags `name` and `uuid` are
called `Dom` and `UUID`.
";

const INPUTS: &str = "
## Read, not written

Inputs of `vm_features`, and what tells that a record lists its devices.
";

const TABLE: &str =
    "\n| field | unit | kind | what it tells | bulk key | older call |\n|---|---|---|---|---|---|\n";

/// The text of docs/METRICS.md.
pub fn metrics_markdown() -> String {
    let mut page = String::from(HEAD);
    measurement(&mut page, &VM_METRICS);
    page.push_str(TABLE);
    rows(&mut page, "", "", &VM_METRICS_FIELDS);

    measurement(&mut page, &VM_DEVICES);
    page.push_str("\nWith devtype `nic`:\n");
    page.push_str(TABLE);
    rows(&mut page, "", "net.N.", &NIC_FIELDS);
    page.push_str("\nWith devtype `disk`:\n");
    page.push_str(TABLE);
    rows(&mut page, "", "block.N.", &DISK_FIELDS);

    measurement(&mut page, &VM_TOTALS);
    page.push_str(TABLE);
    sum_rows(&mut page, NIC_SUM_PREFIX, "NICs", &NIC_FIELDS);
    sum_rows(&mut page, DISK_SUM_PREFIX, "disks", &DISK_FIELDS);
    rows(&mut page, "", "", &VM_TOTALS_FIELDS);
    rows(&mut page, "", "", &WHOLENESS_FIELDS);

    measurement(&mut page, &VM_FEATURES);
    page.push_str("\nFloats, always finite.\n");
    page.push_str(TABLE);
    rows(&mut page, "", "", &VM_FEATURES_FIELDS);

    measurement(&mut page, &VM_EVENTS);
    page.push_str(TABLE);
    for field in &VM_EVENTS_FIELDS {
        row(&mut page, &[field.name, &Unit::Text.to_string(), "text", field.about, "", ""]);
    }

    measurement(&mut page, &COLLECTOR);
    page.push_str(TABLE);
    rows(&mut page, "", "", &COLLECTOR_FIELDS);

    page.push_str(INPUTS);
    page.push_str(TABLE);
    rows(&mut page, "", "", &INPUT_FIELDS);
    page
}

fn measurement(page: &mut String, measurement: &Measurement) {
    let Measurement { name, about, tags } = measurement;
    // Writing to a String cannot fail.
    let _infallible = write!(page, "\n## {name}\n\n{about}\n\nTags: {tags}\n");
}

fn rows<T, V>(page: &mut String, name_prefix: &str, key_prefix: &str, fields: &[Field<T, V>]) {
    for field in fields {
        let name = format!("{name_prefix}{}", field.name);
        let key = if field.bulk.is_empty() { String::new() } else { format!("`{key_prefix}{}`", field.bulk) };
        let cells = [
            &name,
            &field.unit.to_string(),
            &field.kind.to_string(),
            field.about,
            &key,
            &field.legacy.to_string(),
        ];
        row(page, &cells);
    }
}

fn sum_rows<T>(page: &mut String, prefix: &str, devices: &str, fields: &[Field<T>]) {
    for field in fields {
        let about = format!("sum of `{}` over the {devices}", field.name);
        let name = format!("{prefix}{}", field.name);
        row(page, &[&name, &field.unit.to_string(), &field.kind.to_string(), &about, "", ""]);
    }
}

fn row(page: &mut String, cells: &[&str; 6]) {
    let [name, unit, kind, about, bulk, legacy] = cells;
    let _infallible = writeln!(page, "| `{name}` | {unit} | {kind} | {about} | {bulk} | {legacy} |");
}
