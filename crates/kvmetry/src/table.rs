//! The table of `kvmetry once --format table`, made from the lines of two cycles.
//!
//! A rate is the growth of a counter between the two, over their time. What stepped back, or is absent, is a gap.

use std::collections::BTreeMap;

use influxdb_line_protocol::{FieldValue, parse_lines};

/// One VM.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Row {
    host: String,
    name: String,
    state: Option<i64>,
    cpus: Option<i64>,
    /// Of all its vCPUs' time.
    cpu_percent: Option<f64>,
    memory_kib: Option<i64>,
    rss_kib: Option<i64>,
    /// Bytes per second: received, sent, read, written.
    rates: [Option<f64>; 4],
    whole: bool,
}

const RATES: [&str; 4] = ["net_rxbytes", "net_txbytes", "disk_rd_bytes", "disk_wr_bytes"];
const HEAD: [&str; 11] =
    ["HOST", "VM", "STATE", "VCPUS", "CPU%", "MEMORY", "RSS", "NET IN/s", "NET OUT/s", "READ/s", "WRITTEN/s"];

/// Characters of a name that are shown.
const MAX_NAME: usize = 40;

type Totals = (i64, BTreeMap<String, i64>);

/// The VMs of the second cycle, with what grew since the first.
///
/// # Errors
/// Lines that are no line protocol.
pub(crate) fn rows(first: &str, second: &str) -> anyhow::Result<Vec<Row>> {
    let before = totals(first)?;
    let now = totals(second)?;
    Ok(now
        .into_iter()
        .map(|(key, (time, fields))| {
            let before = before.get(&key);
            let rate = |field: &str| {
                let (then, old) = before?;
                let seconds = (time - then) as f64 / 1e9;
                let grown = fields.get(field)?.checked_sub(*old.get(field)?).filter(|grown| *grown >= 0)?;
                (seconds > 0.0).then(|| grown as f64 / seconds)
            };
            let cpus = fields.get("cpus").copied();
            let (host, name, _) = key.clone();
            Row {
                state: fields.get("state").copied(),
                cpus,
                cpu_percent: rate("cputime").map(|ns| ns / 1e7 / cpus.unwrap_or(1).max(1) as f64),
                memory_kib: fields.get("memactual").copied(),
                rss_kib: fields.get("memrss").copied(),
                rates: RATES.map(rate),
                whole: fields.get("collect_ok") == Some(&1),
                host,
                name,
            }
        })
        .collect())
}

/// The integer fields of the `vm_totals` lines, by host, name and UUID.
fn totals(lines: &str) -> anyhow::Result<BTreeMap<(String, String, String), Totals>> {
    let mut totals = BTreeMap::new();
    for line in parse_lines(lines) {
        let line = line?;
        if line.series.measurement.as_str() != "vm_totals" {
            continue;
        }
        let tag = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| line.tag_value(name))
                .map(|value| value.to_string())
                .unwrap_or_default()
        };
        let fields = line.field_set.iter().filter_map(|(key, value)| match value {
            FieldValue::I64(v) => Some((key.to_string(), *v)),
            _ => None,
        });
        let key = (tag(["host", "host"]), tag(["name", "Dom"]), tag(["uuid", "UUID"]));
        totals.insert(key, (line.timestamp.unwrap_or_default(), fields.collect()));
    }
    Ok(totals)
}

/// The table as text, its head bold where there are colours.
pub(crate) fn render(rows: &[Row], colours: bool) -> String {
    if rows.is_empty() {
        return "no live VMs\n".to_owned();
    }
    let cells: Vec<[String; 11]> = rows.iter().map(cells).collect();
    let width = |column: usize| {
        cells.iter().map(|row| row[column].chars().count()).chain([HEAD[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &[String; 11]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Names and states to the left, numbers to the right.
            if column < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let head = line(&HEAD.map(str::to_owned));
    let mut text = if colours { format!("\x1b[1m{}\x1b[0m\n", head.trim_end()) } else { head };
    text.extend(cells.iter().map(line));
    text
}

/// What a person calls a domain's state (`virDomainState`).
pub(crate) fn state_name(state: i64) -> Option<&'static str> {
    const NAMES: [&str; 8] =
        ["no state", "running", "blocked", "paused", "shutting down", "shut off", "crashed", "suspended"];
    NAMES.get(usize::try_from(state).ok()?).copied()
}

fn cells(row: &Row) -> [String; 11] {
    let gap = || "-".to_owned();
    let bytes = |bytes: Option<f64>| bytes.map_or_else(gap, human);
    let kib = |kib: Option<i64>| bytes(kib.map(|kib| kib as f64 * 1024.0));
    let state = row.state.and_then(state_name).unwrap_or("-");
    // Control characters in a name must not reach the terminal, and one long name must not push all columns away.
    let clean = |name: &str| {
        let shown = if name.chars().count() > MAX_NAME { MAX_NAME - 1 } else { MAX_NAME };
        let mut cell: String =
            name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(shown).collect();
        if shown < MAX_NAME {
            cell.push('…');
        }
        cell
    };
    [
        clean(&row.host),
        clean(&row.name),
        if row.whole { state.to_owned() } else { format!("{state} (partly read)") },
        row.cpus.map_or_else(gap, |cpus| cpus.to_string()),
        row.cpu_percent.map_or_else(gap, |percent| format!("{percent:.1}")),
        kib(row.memory_kib),
        kib(row.rss_kib),
        bytes(row.rates[0]),
        bytes(row.rates[1]),
        bytes(row.rates[2]),
        bytes(row.rates[3]),
    ]
}

/// Bytes with a binary unit and three significant digits.
fn human(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        for (bytes, expect) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (1024.0, "1.00 KiB"),
            (10.0 * 1024.0, "10.0 KiB"),
            (1e9, "954 MiB"),
        ] {
            assert_eq!(human(bytes), expect);
        }
    }

    #[test]
    fn rates_are_growth_over_time_and_a_step_back_is_a_gap() {
        let line = |time: i64, cpu: i64, rx: i64, tx: i64| {
            format!(
                "vm_totals,host=h,name=a\\ b,uuid=u net_rxbytes={rx}i,net_txbytes={tx}i,state=1i,cpus=2i,cputime={cpu}i,\
                 memactual=1024i,collect_ok=1i {time}\n"
            )
        };
        let rows =
            rows(&line(0, 0, 0, 500), &line(2_000_000_000, 1_000_000_000, 2048, 100)).expect("line protocol");
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].cpu_percent, Some(25.0));
        assert_eq!(rows[0].rates, [Some(1024.0), None, None, None]);
        let text = render(&rows, false);
        let second = text.lines().nth(1).expect("a row");
        assert_eq!(
            second.split_whitespace().collect::<Vec<_>>().join(" "),
            "h a b running 2 25.0 1.00 MiB - 1.00 KiB - - -"
        );
        assert_eq!(render(&[], false), "no live VMs\n");
    }

    #[test]
    fn names_are_clean_and_not_long() {
        let name = |name: &str| cells(&Row { name: name.to_owned(), ..Row::default() })[1].clone();
        assert_eq!(name("a\u{1b}[31m"), "a\u{fffd}[31m");
        assert_eq!(name(&"x".repeat(40)), "x".repeat(40));
        assert_eq!(name(&"x".repeat(300)), format!("{}…", "x".repeat(39)));
    }
}
