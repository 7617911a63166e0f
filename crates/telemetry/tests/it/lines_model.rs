//! Any lines against a model that takes them one by one and knows no columns.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use telemetry::lines::{Admitted, Batch, Catalog, Column, FieldType, Precision, Refused, Values, parse};

const NOW: i64 = 1_795_385_500_000_000_000;

/// A field's value; floats by their bits, so that they can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Float(u64),
    Integer(i64),
    Unsigned(u64),
    String(String),
    Boolean(bool),
}

impl Value {
    fn column(&self) -> Column {
        Column::Field(match self {
            Self::Float(_) => FieldType::Float,
            Self::Integer(_) => FieldType::Integer,
            Self::Unsigned(_) => FieldType::Unsigned,
            Self::String(_) => FieldType::String,
            Self::Boolean(_) => FieldType::Boolean,
        })
    }
}

/// A line, as it is meant.
#[derive(Clone, Debug)]
struct Line {
    table: String,
    /// In the order in which they are written.
    tags: Vec<(String, String)>,
    fields: Vec<(String, Value)>,
    time: Option<i64>,
    /// How it is written.
    style: Style,
}

#[derive(Clone, Copy, Debug)]
struct Style {
    /// Escapes also what need not be: a comma in a field's name, an equals sign in a tag's value.
    escapes_all: bool,
    blanks: usize,
    newlines: usize,
    comment: bool,
}

/// What a row means: its table, tags, time and fields.
type Row = (String, BTreeMap<String, String>, i64, BTreeMap<String, Value>);

impl Line {
    fn write(&self, out: &mut String) {
        let Style { escapes_all, blanks, newlines, comment } = self.style;
        let escape = |text: &str, needed: &str| {
            let special = |c: char| needed.contains(c) || (escapes_all && ",= ".contains(c));
            text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect::<String>()
        };
        if comment {
            out.push_str("# x=\"\n");
        }
        out.push_str(&" ".repeat(blanks));
        // An equals sign cannot be escaped in a measurement: the backslash would be a part of it.
        out.push_str(&self.table.replace(',', "\\,").replace(' ', "\\ "));
        for (name, value) in &self.tags {
            write!(out, ",{}={}", escape(name, ",= "), escape(value, ", ")).expect("a string takes it");
        }
        let mut separator = ' ';
        for (name, value) in &self.fields {
            write!(out, "{separator}{}=", escape(name, ",= ")).expect("a string takes it");
            separator = ',';
            match value {
                Value::Float(bits) => write!(out, "{:?}", f64::from_bits(*bits)),
                Value::Integer(value) => write!(out, "{value}i"),
                Value::Unsigned(value) => write!(out, "{value}u"),
                Value::Boolean(value) => write!(out, "{value}"),
                Value::String(text) => write!(out, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            }
            .expect("a string takes it");
        }
        if let Some(time) = self.time {
            write!(out, "{}{time}{}", " ".repeat(1 + blanks), " ".repeat(blanks)).expect("a string takes it");
        }
        out.push_str(&"\n".repeat(newlines));
    }

    /// What it means, or that it is bad by itself.
    fn row(&self) -> Result<Row, ()> {
        let tags: BTreeMap<_, _> = self.tags.iter().cloned().collect();
        let fields: BTreeMap<_, _> = self.fields.iter().cloned().collect();
        let is_good = tags.len() == self.tags.len()
            && fields.len() == self.fields.len()
            && !tags.keys().any(|name| fields.contains_key(name))
            && !tags.keys().chain(fields.keys()).any(|name| name == "time")
            && fields
                .values()
                .all(|value| !matches!(value, Value::Float(bits) if f64::from_bits(*bits).is_infinite()));
        if is_good { Ok((self.table.clone(), tags, self.time.unwrap_or(NOW), fields)) } else { Err(()) }
    }
}

/// The schema of one database, told line by line.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    tables: BTreeMap<String, BTreeMap<String, Column>>,
}

impl Model {
    /// Takes a row if it agrees.
    fn take(&mut self, row: &Row) -> bool {
        let (table, tags, _, fields) = row;
        let columns = tags.keys().map(|name| (name.clone(), Column::Tag));
        let columns = columns.chain(fields.iter().map(|(name, value)| (name.clone(), value.column())));
        let columns: BTreeMap<_, _> = columns.collect();
        let known = self.tables.get(table);
        let agrees = |(name, column): (&String, &Column)| {
            known.and_then(|known| known.get(name)).is_none_or(|known| known == column)
        };
        if !columns.iter().all(agrees) {
            return false;
        }
        self.tables.entry(table.clone()).or_default().extend(columns);
        true
    }

    /// The rows and the numbers of the refused lines.
    fn write(&mut self, lines: &[Line]) -> (Vec<Row>, Vec<u32>) {
        let mut rows = Vec::new();
        let mut refused = Vec::new();
        for (number, line) in (1..).zip(lines) {
            match line.row() {
                Ok(row) if self.take(&row) => rows.push(row),
                _ => refused.push(number),
            }
        }
        (rows, refused)
    }
}

/// The rows of a batch, table by table, each in its order. Checks the batch's shape.
fn rows_of(batch: &Batch) -> BTreeMap<String, Vec<Row>> {
    let mut tables = BTreeMap::new();
    for table in &batch.tables {
        assert!(!table.rows.is_empty(), "an empty table");
        assert_eq!(table.times.len(), table.rows.len());
        let keys: BTreeSet<_> = table.series.iter().collect();
        assert_eq!(keys.len(), table.series.len(), "a series twice");
        let used: BTreeSet<_> = table.rows.iter().map(|series| *series as usize).collect();
        assert!(used.into_iter().eq(0..table.series.len()), "a series without a row, or a row without one");
        let names: BTreeSet<_> = table.fields.iter().map(|field| &field.name).collect();
        assert_eq!(names.len(), table.fields.len(), "a field twice");
        for series in &table.series {
            assert!(series.tags.is_sorted_by(|a, b| a.0 < b.0), "{series:?}");
        }
        for field in &table.fields {
            assert_eq!(field.values.len(), table.rows.len());
            if let Some(present) = &field.present {
                assert_eq!(present.len(), table.rows.len());
                assert!(present.contains(&true) && present.contains(&false), "{field:?}");
            }
        }
        let row = |at: usize| {
            let fields = table.fields.iter().filter(|field| field.has(at)).map(|field| {
                let value = match &field.values {
                    Values::Float(values) => Value::Float(values[at].to_bits()),
                    Values::Integer(values) => Value::Integer(values[at]),
                    Values::Unsigned(values) => Value::Unsigned(values[at]),
                    Values::String(values) => Value::String(values[at].clone()),
                    Values::Boolean(values) => Value::Boolean(values[at]),
                };
                (field.name.clone(), value)
            });
            let tags = table.series[table.rows[at] as usize].tags.iter().cloned().collect();
            (table.table.clone(), tags, table.times[at], fields.collect())
        };
        let rows: Vec<Row> = (0..table.rows.len()).map(row).collect();
        assert!(tables.insert(table.table.clone(), rows).is_none(), "a table twice");
    }
    tables
}

fn schema_of(catalog: &Catalog) -> Model {
    let columns =
        |table: &str| catalog.columns("kvm", table).map(|(name, column)| (name.to_owned(), column)).collect();
    Model { tables: catalog.tables("kvm").map(|table| (table.to_owned(), columns(table))).collect() }
}

fn check_admitted(admitted: &Admitted<'_>, rows: &[Row], refused: &[u32]) {
    let mut expect = BTreeMap::<String, Vec<Row>>::new();
    for row in rows {
        expect.entry(row.0.clone()).or_default().push(row.clone());
    }
    let times = || rows.iter().map(|row| row.2);
    assert_eq!(rows_of(&admitted.batch), expect);
    assert_eq!(admitted.batch.lines as usize, rows.len());
    assert_eq!(admitted.batch.span, times().min().zip(times().max()));
    assert_eq!(admitted.errors.iter().map(|error| error.line_number).collect::<Vec<_>>(), refused);
    assert_eq!(admitted.untold_errors, 0);
}

/// Writes some bodies into one database, and the same into the model.
fn check(bodies: &[(Vec<Line>, bool)]) {
    let mut catalog = Catalog::default();
    let mut model = Model::default();
    for (lines, partial) in bodies {
        let mut body = String::new();
        lines.iter().for_each(|line| line.write(&mut body));
        let parsed = parse(&body, Precision::Nanosecond, NOW);
        let before = model.clone();
        let (rows, refused) = model.write(lines);
        let admitted = catalog.admit("kvm", parsed, *partial);
        match admitted {
            Ok(admitted) => {
                check_admitted(&admitted, &rows, &refused);
                assert!(*partial || refused.is_empty());
                assert_eq!(admitted.schema_changed, model != before);

                // The text holds the same, whoever reads it, and is its own text.
                let parsed = parse(&admitted.text, Precision::Nanosecond, i64::MAX);
                let again = if rows.is_empty() {
                    assert_eq!(admitted.text, "");
                    continue;
                } else {
                    Catalog::default().admit("kvm", parsed, false).expect("accepted lines")
                };
                check_admitted(&again, &rows, &[]);
                assert_eq!(again.text, admitted.text);
                assert!(matches!(again.text, std::borrow::Cow::Borrowed(_)));
                assert_eq!(
                    influxdb_line_protocol::parse_lines(&admitted.text).filter(Result::is_ok).count(),
                    rows.len(),
                    "InfluxDB sees other lines in {}",
                    admitted.text
                );
            }
            Err(Refused::Empty) => assert!(lines.is_empty()),
            Err(Refused::Lines { errors, untold: 0 }) => {
                assert!(!partial && !refused.is_empty());
                assert_eq!(errors.iter().map(|error| error.line_number).collect::<Vec<_>>(), refused);
                model = before;
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!(schema_of(&catalog), model);
        assert_eq!(Catalog::from_bytes(&catalog.to_bytes()), Ok(catalog.clone()));
    }
}

/// Names: few, so that lines meet; some with all that has to be escaped.
fn name() -> impl Strategy<Value = String> {
    select(vec!["a", "b", "c", "d", "time", "e f", "g,h", "i=j", "k\\l", "ü", "#", "q\"", "1", "-"])
        .prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => any::<i64>().prop_map(Value::Integer),
        1 => (-9..9_i64).prop_map(Value::Integer),
        2 => any::<u64>().prop_map(Value::Unsigned),
        2 => any::<f64>().prop_filter("not a number", |value| !value.is_nan()).prop_map(|v| Value::Float(v.to_bits())),
        1 => any::<bool>().prop_map(Value::Boolean),
        2 => "[a-z\"\\\\ ,=\n\r#ü0-9]{0,12}".prop_map(Value::String),
    ]
}

fn line() -> impl Strategy<Value = Line> {
    let style = (any::<bool>(), 0..3_usize, 1..3_usize, prop::bool::weighted(0.1));
    let style = style.prop_map(|(escapes_all, blanks, newlines, comment)| Style {
        escapes_all,
        blanks,
        newlines,
        comment,
    });
    let table = prop_oneof![8 => Just("m".to_owned()), 1 => Just("n=1".to_owned()), 1 => Just("n\\=1".to_owned()), 1 => name()];
    // A measurement cannot begin like a comment.
    let table = table.prop_filter("a comment", |table| table != "#");
    let tags = vec((name(), select(vec!["x", "y", "=", "\\", "a b", "é", "#"]).prop_map(tag_value)), 0..4);
    let times = prop_oneof![3 => (0..NOW).prop_map(Some), 1 => Just(None), 1 => any::<i64>().prop_map(|t| Some(t.min(NOW)))];
    (table, tags, vec((name(), value()), 1..5), times, style)
        .prop_map(|(table, tags, fields, time, style)| Line { table, tags, fields, time, style })
}

/// A value of a tag cannot end with a backslash.
fn tag_value(text: &str) -> String {
    if text.ends_with('\\') { format!("{text}x") } else { text.to_owned() }
}

/// Asserts of any text: what is taken of it is taken whole when written again, as InfluxDB's parser sees it.
fn check_text(body: &str) {
    let mut catalog = Catalog::default();
    let Ok(admitted) = catalog.admit("kvm", parse(body, Precision::Auto, NOW), true) else { return };
    if admitted.batch.lines == 0 {
        assert_eq!((&*admitted.text, catalog), ("", Catalog::default()));
        return;
    }
    let mut catalog_again = Catalog::default();
    let parsed = parse(&admitted.text, Precision::Nanosecond, i64::MAX);
    let again = catalog_again.admit("kvm", parsed, false).unwrap_or_else(|e| panic!("{e}: {body:?}"));
    assert_eq!(again.text, admitted.text, "{body:?}");
    assert_eq!(rows_of(&again.batch), rows_of(&admitted.batch), "{body:?}");
    assert_eq!(catalog_again, catalog, "{body:?}");
    let seen: Result<Vec<_>, _> = influxdb_line_protocol::parse_lines(&admitted.text).collect();
    assert_eq!(seen.expect("lines").len(), admitted.batch.lines as usize, "{body:?}");
}

/// What lines are made of, and what breaks them.
const SHARDS: [&str; 28] = [
    "m",
    "m f=1",
    "m,t=a f=1i 1\n",
    "m,t=a g=\"x\"",
    ",t=a",
    ",t=a\\ b",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\\",
    "\"",
    "=",
    ",",
    "#",
    "# a=\"b\n",
    "f=1",
    ",f=1u",
    ",g=t",
    "f=\"a\nb\" ",
    "1",
    " 1",
    "-",
    "\0",
    "ü",
    "time=1",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_lines_are_taken_as_if_one_by_one(
        bodies in vec((vec(line(), 0..12), prop::bool::weighted(0.7)), 1..4),
    ) {
        check(&bodies);
    }

    #[test]
    fn what_is_taken_of_any_text_is_taken_again(shards in vec(select(&SHARDS[..]), 0..24)) {
        check_text(&shards.concat());
    }
}
