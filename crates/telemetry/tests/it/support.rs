//! Records as `virsh domstats` prints them, in; lines as InfluxDB's parser sees them, out.

use std::collections::BTreeMap;
use std::time::Duration;

use influxdb_line_protocol::{FieldValue, parse_lines};
use telemetry::{
    DomainId, Driver, Encoded, Groups, HostTracker, Moment, Sample, SampleReader, TrackerOptions, Uuid, Value,
};

/// A typed parameter that owns its text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Owned {
    UInt(u64),
    Int(i64),
    Str(String),
}

impl Owned {
    pub(crate) fn value(&self) -> Value<'_> {
        match self {
            Self::UInt(number) => Value::UInt(*number),
            Self::Int(number) => Value::Int(*number),
            Self::Str(text) => Value::Str(text),
        }
    }
}

pub(crate) type Params = Vec<(String, Owned)>;

/// The parameters in the output of `virsh domstats`.
pub(crate) fn domstats(text: &str) -> Params {
    let value = |text: &str| match (text.parse(), text.parse()) {
        (Ok(number), _) => Owned::UInt(number),
        (_, Ok(number)) => Owned::Int(number),
        _ => Owned::Str(text.to_owned()),
    };
    let pairs = text.lines().filter_map(|line| line.trim().split_once('='));
    pairs.map(|(key, text)| (key.to_owned(), value(text))).collect()
}

/// A running domain with one NIC and two disks, read whole.
pub(crate) const RUNNING: &str = "
    state.state=1
    cpu.time=700\n cpu.user=300\n cpu.system=400
    balloon.current=32768\n balloon.maximum=65536\n balloon.rss=48000
    vcpu.current=2
    net.count=1
    net.0.name=vnet0
    net.0.rx.bytes=1\n net.0.rx.pkts=2\n net.0.rx.errs=3\n net.0.rx.drop=4
    net.0.tx.bytes=5\n net.0.tx.pkts=6\n net.0.tx.errs=7\n net.0.tx.drop=8
    block.count=2
    block.0.name=vda
    block.0.rd.reqs=10\n block.0.rd.bytes=11\n block.0.wr.reqs=12\n block.0.wr.bytes=13
    block.1.name=vdb
    block.1.rd.reqs=20\n block.1.rd.bytes=21\n block.1.wr.reqs=22\n block.1.wr.bytes=23
";

/// `RUNNING` without the keys that hold one of these texts.
pub(crate) fn running_without(lacking: &[&str]) -> Params {
    let mut params = domstats(RUNNING);
    params.retain(|(key, _)| !lacking.iter().any(|text| key.contains(text)));
    params
}

pub(crate) const UUID: &str = "0123abcd-ef01-2345-6789-abcdef012345";

/// One tracker and one reused sample, fed with one domain.
pub(crate) struct Bench {
    pub(crate) tracker: HostTracker,
    pub(crate) sample: Sample,
    pub(crate) reader: SampleReader,
    pub(crate) id: i32,
    pub(crate) name: String,
    pub(crate) wanted: Groups,
    pub(crate) driver: Driver,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(TrackerOptions { host: "h1".to_owned(), ..TrackerOptions::default() })
    }

    pub(crate) fn with(options: TrackerOptions) -> Self {
        Self {
            tracker: HostTracker::new(options),
            sample: Sample::default(),
            reader: SampleReader::new(),
            id: 7,
            name: "db".to_owned(),
            wanted: Groups::ALL,
            driver: Driver::Qemu,
        }
    }

    /// Reads a bulk record into the sample.
    pub(crate) fn read(&mut self, params: &Params) -> &mut Sample {
        let uuid: Uuid = UUID.parse().expect("a uuid");
        self.sample.begin(DomainId(self.id), uuid, &self.name, self.wanted);
        for (key, value) in params {
            self.reader.param(&mut self.sample, key, value.value());
        }
        self.reader.finish(&mut self.sample, self.driver);
        &mut self.sample
    }

    /// Writes what the sample holds, `seconds` after the start.
    pub(crate) fn encode(&mut self, seconds: u64) -> (Encoded, String) {
        let mut out = Vec::new();
        let encoded = self.tracker.encode(&mut self.sample, &moment(seconds), &mut out);
        let text = String::from_utf8(out).expect("line protocol is text");
        assert_eq!(text.lines().count(), encoded.lines as usize, "{text}");
        (encoded, text)
    }

    /// Reads and writes.
    pub(crate) fn cycle(&mut self, seconds: u64, params: &Params) -> (Encoded, Lines) {
        self.read(params);
        let (encoded, text) = self.encode(seconds);
        (encoded, Lines::parse(&text))
    }
}

/// The wall clock at second 0 of a test.
pub(crate) const EPOCH: i64 = 1_795_385_500;

pub(crate) fn moment(seconds: u64) -> Moment {
    let wall_secs = EPOCH + seconds as i64;
    Moment { timestamp_ns: wall_secs * 1_000_000_000, taken: Duration::from_secs(1000 + seconds), wall_secs }
}

/// A field's value, comparable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Parsed {
    Int(i64),
    Float(f64),
    Text(String),
}

/// One parsed line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParsedLine {
    pub(crate) measurement: String,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) fields: Vec<(String, Parsed)>,
    pub(crate) timestamp: i64,
}

impl ParsedLine {
    pub(crate) fn tag(&self, key: &str) -> Option<&str> {
        self.tags.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    pub(crate) fn field(&self, key: &str) -> Option<&Parsed> {
        self.fields.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }
}

/// Parsed lines.
#[derive(Debug)]
pub(crate) struct Lines(pub(crate) Vec<ParsedLine>);

impl Lines {
    /// Parses line protocol; panics where InfluxDB's parser refuses it.
    pub(crate) fn parse(text: &str) -> Self {
        let lines = parse_lines(text).map(|line| {
            let line = line.unwrap_or_else(|error| panic!("{error}\n{text}"));
            let field = |value: &FieldValue<'_>| match value {
                FieldValue::I64(number) => Parsed::Int(*number),
                FieldValue::F64(number) => Parsed::Float(*number),
                FieldValue::String(text) => Parsed::Text(text.to_string()),
                other => panic!("a field of another type: {other:?}"),
            };
            ParsedLine {
                measurement: line.series.measurement.to_string(),
                tags: line
                    .series
                    .tag_set
                    .iter()
                    .flatten()
                    .map(|(k, v)| (k.to_string(), v.to_string()))
                    .collect(),
                fields: line.field_set.iter().map(|(k, v)| (k.to_string(), field(v))).collect(),
                timestamp: line.timestamp.expect("every line has a time"),
            }
        });
        Self(lines.collect())
    }

    /// The lines as a map from `measurement` or `measurement/device` to `field=value …`, for comparing at a glance.
    pub(crate) fn brief(&self) -> BTreeMap<String, String> {
        let brief = |line: &ParsedLine| {
            let device = line.tag("device").map(|device| format!("/{device}")).unwrap_or_default();
            let fields = line.fields.iter().map(|(name, value)| match value {
                Parsed::Int(number) => format!("{name}={number}"),
                Parsed::Float(number) => format!("{name}={number:?}"),
                Parsed::Text(text) => format!("{name}={text:?}"),
            });
            (format!("{}{device}", line.measurement), fields.collect::<Vec<_>>().join(" "))
        };
        self.0.iter().map(brief).collect()
    }

    pub(crate) fn get(&self, measurement: &str) -> Option<&ParsedLine> {
        self.0.iter().find(|line| line.measurement == measurement)
    }
}
