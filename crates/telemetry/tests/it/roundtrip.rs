//! Whatever the names and values are: InfluxDB's parser reads back what was written, after the one mapping.

use proptest::prelude::*;
use telemetry::{
    DomainId, Driver, Event, Groups, HostTracker, Sample, SampleReader, TagStyle, TrackerOptions, Uuid,
    Value, map_text,
};

use crate::support::{Lines, Parsed, ParsedLine, moment};

/// Names made of what is dangerous in line protocol, and of anything else.
fn name() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just(" ".to_owned()),
        Just(",".to_owned()),
        Just("=".to_owned()),
        Just("\"".to_owned()),
        Just("\\".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("\t".to_owned()),
        Just("\0".to_owned()),
        Just("#".to_owned()),
        Just("🦀".to_owned()),
        Just("ü".to_owned()),
        Just("\u{85}".to_owned()),
        "[a-zA-Z0-9_.:-]{1,5}",
        any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Keys of bulk records, and what looks like them.
fn key() -> impl Strategy<Value = String> {
    let tail = "name|rx[.]bytes|tx[.]drop|rd[.]reqs|errors|current|rss|available|unused|usable|last-update|count|[a-z.]{0,6}";
    let head = "net[.]|block[.]|balloon[.]|cpu[.]|state[.]|";
    (head, "(([0-9]|102[34]|[0-9]{5,30})[.])?", tail).prop_map(|(head, number, tail)| head + &number + &tail)
}

/// Counters, the extremes often.
fn counter() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), Just(i64::MAX as u64), Just(i64::MAX as u64 + 1), any::<u64>()]
}

fn expected_tag(value: &str) -> Option<String> {
    let mapped = map_text(value).into_owned();
    (!mapped.is_empty()).then_some(mapped)
}

fn tag(line: &ParsedLine, key: &str) -> Option<String> {
    line.tag(key).map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn lines_read_back_equal(
        domain in name(),
        host in name(),
        nic in name(),
        disk in name(),
        uuid in any::<[u8; 16]>(),
        id in 0..i32::MAX,
        reference in any::<bool>(),
        counters in proptest::collection::vec(counter(), 20),
    ) {
        let tag_style = if reference { TagStyle::Reference } else { TagStyle::Dashboard };
        let mut tracker = HostTracker::new(TrackerOptions { host: host.clone(), tag_style, ..TrackerOptions::default() });
        let mut sample = Sample::default();
        let signed = |at: usize| i64::try_from(counters[at]).unwrap_or(-1);
        let mut all = Vec::new();
        for seconds in [0, 5] {
            sample.begin(DomainId(id), Uuid(uuid), &domain, Groups::ALL);
            sample.memory_stats([(7, counters[seconds as usize]), (6, counters[2])]);
            sample.list_nics();
            sample.list_disks();
            sample.nic(&nic, &std::array::from_fn(signed));
            sample.disk(&disk, &std::array::from_fn(|at| signed(at + 8)));
            tracker.encode(&mut sample, &moment(seconds), &mut all);
        }
        let lines = Lines::parse(std::str::from_utf8(&all).unwrap()).0;

        // Names decide the lines: a device without one has no identity.
        let devices = usize::from(!nic.is_empty()) + usize::from(!disk.is_empty());
        prop_assert_eq!(lines.len(), 2 * (devices + 1) + 1, "two readings, and one line of features");
        let (name_key, uuid_key) = if reference { ("Dom", "UUID") } else { ("name", "uuid") };
        for line in &lines {
            prop_assert_eq!(tag(line, name_key), expected_tag(&domain));
            prop_assert_eq!(tag(line, "host"), expected_tag(&host));
            prop_assert_eq!(tag(line, uuid_key), Some(Uuid(uuid).to_string()));
            prop_assert_eq!(tag(line, "VMID"), Some(id.to_string()));
            prop_assert!(line.tags.is_sorted());
            match tag(line, "devtype").as_deref() {
                Some("nic") => {
                    prop_assert_eq!(tag(line, "device"), expected_tag(&nic));
                    let values: Vec<_> = line.fields.iter().map(|(_, value)| value.clone()).collect();
                    let expect: Vec<_> = (0..8).map(|at| Parsed::Int(signed(at).max(0))).collect();
                    prop_assert_eq!(values, expect);
                }
                Some("disk") => {
                    prop_assert_eq!(tag(line, "device"), expected_tag(&disk));
                    let values: Vec<_> = line.fields.iter().map(|(_, value)| value.clone()).collect();
                    let expect: Vec<_> = (8..13).map(|at| Parsed::Int(signed(at).max(0))).collect();
                    prop_assert_eq!(values, expect);
                }
                _ => {}
            }
        }
        let rss: Vec<_> = lines.iter().filter_map(|line| line.field("memrss").cloned()).collect();
        let largest = |value: u64| Parsed::Int(value.min(i64::MAX as u64) as i64);
        prop_assert_eq!(rss, vec![largest(counters[0]), largest(counters[5])]);
        let features = &lines[lines.len() - 1];
        for (_, value) in &features.fields {
            prop_assert!(matches!(value, Parsed::Float(number) if number.is_finite()));
        }
        let rate = (counters[5] as f64 - counters[0] as f64) / 5.0;
        prop_assert_eq!(features.field("memory_rate_kb_per_sec"), Some(&Parsed::Float(rate)));
    }

    #[test]
    fn events_read_back_equal(
        domain in name(), event in name(), detail in name(), reason in name(), time in 0..i64::MAX,
    ) {
        let mut tracker = HostTracker::new(TrackerOptions::default());
        let uuid = Uuid::default();
        let what =
            Event { uuid, name: &domain, id: DomainId(1), event: &event, detail: &detail, reason: &reason };
        let mut out = Vec::new();
        tracker.event(&what, time, &mut out);
        tracker.event(&what, time, &mut out);
        let lines = Lines::parse(std::str::from_utf8(&out).unwrap()).0;
        prop_assert_eq!(lines.len(), 2);
        prop_assert_eq!([lines[0].timestamp, lines[1].timestamp], [time, time + 1]);
        for line in &lines {
            prop_assert_eq!(tag(line, "name"), expected_tag(&domain));
            prop_assert_eq!(tag(line, "event"), expected_tag(&event));
            prop_assert_eq!(line.field("detail"), Some(&Parsed::Text(map_text(&detail).into_owned())));
            prop_assert_eq!(line.field("reason"), Some(&Parsed::Text(map_text(&reason).into_owned())));
        }
    }

    #[test]
    fn the_mapping_changes_only_what_cannot_be_carried(text in name()) {
        let mapped = map_text(&text);
        prop_assert!(!mapped.contains(char::is_control) && !mapped.ends_with('\\'));
        prop_assert_eq!(map_text(&mapped), mapped.clone(), "mapping again changes nothing");
        if !text.contains(char::is_control) && !text.ends_with('\\') {
            prop_assert_eq!(&mapped, &text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_record_gives_lines_that_can_be_read(
        params in proptest::collection::vec((key(), counter(), name()), 0..60), id in any::<i32>(),
    ) {
        let mut tracker = HostTracker::new(TrackerOptions::default());
        let reader = SampleReader::new();
        let mut sample = Sample::default();
        for seconds in [0, 5] {
            sample.begin(DomainId(id), Uuid::default(), "db", Groups::ALL);
            for (key, number, text) in &params {
                let value = match number % 5 {
                    0 => Value::Str(text),
                    1 => Value::Int(*number as i64),
                    2 => Value::Double(*number as f64),
                    3 => Value::Bool(true),
                    _ => Value::UInt(*number),
                };
                reader.param(&mut sample, key, value);
            }
            reader.finish(&mut sample, Driver::Qemu);
            let mut out = Vec::new();
            let encoded = tracker.encode(&mut sample, &moment(seconds), &mut out);
            let lines = Lines::parse(std::str::from_utf8(&out).unwrap()).0;
            prop_assert_eq!(lines.len(), encoded.lines as usize);
        }
    }
}

#[test]
fn names_are_mapped_and_escaped_as_told() {
    let check = |name: &str, mapped: &str, written: &str| {
        assert_eq!(map_text(name), mapped);
        let mut tracker = HostTracker::new(TrackerOptions::default());
        let event =
            Event { uuid: Uuid::default(), name, id: DomainId::NONE, event: "e", detail: "", reason: "" };
        let mut out = Vec::new();
        tracker.event(&event, 0, &mut out);
        let expect =
            format!("vm_events,event=e,{written}uuid={} detail=\"\",reason=\"\" 0\n", Uuid::default());
        assert_eq!(String::from_utf8(out).unwrap(), expect);
    };
    check("db,prod=1 \"ü\"", "db,prod=1 \"ü\"", "name=db\\,prod\\=1\\ \"ü\",");
    check("a\nb\tc\0", "a\u{fffd}b\u{fffd}c\u{fffd}", "name=a\u{fffd}b\u{fffd}c\u{fffd},");
    check("a\\", "a\\\u{fffd}", "name=a\\\u{fffd},");
    check("a\\b", "a\\b", "name=a\\b,");
    check("a\\ b", "a\\ b", "name=a\\\\\\ b,");
    check("a\\\\b", "a\\\\b", "name=a\\\\\\b,");
    check("", "", "");
}
