//! Bodies of writes in; batches, text and errors out.

use std::borrow::Cow;

use telemetry::lines::{
    Admitted, Batch, Catalog, CatalogFault, Column, FieldType, MergeConflict, Precision, Refused,
    SeriesMemory, Values, limits, parse, parse_again, text,
};

/// The clock of these tests.
const NOW: i64 = 1_795_385_500_000_000_000;

fn admit<'a>(catalog: &mut Catalog, body: &'a str, partial: bool) -> Result<Admitted<'a>, Refused> {
    let parsed = parse(body, Precision::Auto, NOW);
    let mut memory = SeriesMemory::default();
    for _ in 0..2 {
        let again = parse_again(body, Precision::Auto, NOW, Some(&mut memory));
        assert_eq!(again, parsed, "with the series of earlier bodies: {body}");
    }
    catalog.admit("kvm", parsed, partial)
}

/// Writes a body into an empty database, partially.
fn write(body: &str) -> Admitted<'_> {
    admit(&mut Catalog::default(), body, true).expect("a body with lines")
}

/// Asserts that one line is refused by itself, with these words among the error's, and that a good line beside it
/// is taken.
fn check_refused(line: &str, words: &str) {
    let body = format!("{line}\nm f=1i 1\n");
    let admitted = write(&body);
    assert_eq!(admitted.batch.lines, 1, "{line}");
    assert_eq!(admitted.text, "m f=1i 1000000000\n", "{line}");
    assert_eq!(admitted.untold_errors, 0);
    let [error] = &admitted.errors[..] else { panic!("{line}: {:?}", admitted.errors) };
    assert_eq!(error.line_number, 1, "{line}");
    assert_eq!(error.original, line.chars().take(20).collect::<String>(), "{line}");
    assert!(error.message.contains(words), "{line}: {}", error.message);
    assert_eq!(
        admit(&mut Catalog::default(), &body, false),
        Err(Refused::Lines { errors: vec![error.clone()], untold: 0 })
    );
}

/// Asserts that a line is taken; gives its batch.
fn check_taken(line: &str) -> Batch {
    let admitted = write(line);
    assert_eq!(admitted.errors, [], "{line}");
    assert_eq!(admitted.batch.lines, 1, "{line}");
    admitted.batch
}

#[test]
fn what_influxdb_refuses_in_a_line_is_refused() {
    check_refused("m f=1i 1\r", "CR LF");
    check_refused("m f=NaN", "no field, name=value, can be read at 'f=NaN'");
    check_refused("m a=1,f=NaN 1", "neither a field nor a timestamp can be read at 'f=NaN 1'");
    check_refused("m f=inf", "no field");
    check_refused("m f=-inf", "no field");
    check_refused("m f=1e999", "beyond what a float holds");
    check_refused("m f=-1e999", "beyond what a float holds");
    check_refused("m f=+1", "no field");
    check_refused("m f=+1i", "no field");
    check_refused("m f=.5", "no field");
    check_refused("m f=5.", "neither a field nor a timestamp can be read at '.'");
    check_refused("m,t= f=1", "tags in 'm,t='");
    check_refused("m,a=b,t= f=1", "'m,a=b,t=' is not a measurement and tags");
    check_refused("m,t f=1", "tags in 'm,t'");
    check_refused("m, f=1", "tags in 'm,'");
    check_refused("m,time=x f=1", "'time' is the column of the timestamps and cannot be a tag");
    check_refused("m time=1", "'time' is the column of the timestamps and cannot be a field");
    check_refused("m f=1,f=1", "the field 'f' stands twice");
    check_refused("m f=1,g=2,f=3", "the field 'f' stands twice");
    check_refused("m f=1,f=1i", "the field 'f' stands twice");
    check_refused("m,t=a,t=a f=1", "the tag 't' stands twice");
    check_refused("m,t=a,u=c,t=b f=1", "the tag 't' stands twice");
    check_refused("m,t=a t=1", "'t' is a tag and a field");
    check_refused("m", "the line has no fields");
    check_refused("m 1", "no field, name=value, can be read at '1'");
    check_refused("m f=", "no field");
    check_refused(",t=a f=1", "measurement");
    check_refused("m f=9223372036854775808i", "beyond a 64-bit integer");
    check_refused("m f=18446744073709551616u", "beyond an unsigned 64-bit integer");
    check_refused("m f=-1u", "at 'u'");
    check_refused("m f=1 9223372036854775808", "beyond a 64-bit integer");
    check_refused("m f=1 1 1", "at '1'");
    check_refused("m f=1 12:00", "at ':00'");
    check_refused("m f=tru", "at 'ru'");
    check_refused("m,t=a\\ f=1", "no fields");
    check_refused("m\tf=1", "is not a measurement and tags");
    check_refused("m,t=a\\\nb f=1", "line break");
    check_refused("m\u{7} f=1", "control character");
    check_refused("m f\u{7}=1", "control character");
    check_refused("m,t\u{7}=a f=1", "control character");
}

#[test]
fn a_text_that_is_not_closed_goes_on_to_the_next_quote() {
    let admitted = write("m a=1i 1\nm f=\"a 2\nm a=3i 3\nm f=\"b\" 4\nm a=5i 5\n");
    assert_eq!(admitted.text, "m a=1i 1000000000\n");
    assert_eq!(told(&admitted), [(2, "the text of a field does not end".to_owned())]);

    // The parser would take this line, where nothing follows it.
    let admitted = write("m f=1,g}2i,h=\"==\"");
    assert_eq!(told(&admitted), [(1, "the text of a field does not end".to_owned())]);
}

#[test]
fn what_influxdb_takes_in_a_line_is_taken() {
    let check = |line: &str, expect: Values| {
        let batch = check_taken(line);
        let field = &batch.tables[0].fields[0];
        assert_eq!((&*field.name, &field.values), ("f", &expect), "{line}");
    };
    check("m f=1", Values::Float(vec![1.0]));
    check("m f=-0.5e-3", Values::Float(vec![-0.0005]));
    check("m f=1e3", Values::Float(vec![1000.0]));
    check("m f=-9223372036854775808i", Values::Integer(vec![i64::MIN]));
    check("m f=18446744073709551615u", Values::Unsigned(vec![u64::MAX]));
    check("m f=t", Values::Boolean(vec![true]));
    check("m f=FALSE", Values::Boolean(vec![false]));
    check("m f=\"\"", Values::String(vec![String::new()]));
    check("m f=\"a\nb\r\n\\\"c\\\\ d=1,e\"", Values::String(vec!["a\nb\r\n\"c\\ d=1,e".to_owned()]));
    check("  \t m f=1i", Values::Integer(vec![1]));
    check("m   f=1i   1   ", Values::Integer(vec![1]));
}

#[test]
fn names_and_tags_are_unescaped_and_tags_sorted() {
    let batch = check_taken(r"a\,b\ c,z=1,a\=\,\ x=\,\=\ \\y f\=\,\ g=1 7");
    let table = &batch.tables[0];
    assert_eq!(table.table, "a,b c");
    let tags = [("a=, x", r",= \y"), ("z", "1")];
    assert_eq!(table.series[0].tags, tags.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(table.fields[0].name, "f=, g");
    assert_eq!(table.times, [7_000_000_000]);
}

/// Asserts that these measurements and tags are one series, whichever comes first, or that they are as many as there
/// are.
fn check_spellings(spellings: &[&str], is_one: bool) {
    for first in spellings {
        let lines = [first].into_iter().chain(spellings).chain(spellings);
        let body: String = lines.map(|spelling| format!("{spelling} f=1i 1\n")).collect();
        let admitted = write(&body);
        assert_eq!(admitted.errors, []);
        let series: usize = admitted.batch.tables.iter().map(|table| table.series.len()).sum();
        assert_eq!(series, if is_one { 1 } else { spellings.len() }, "{body}");
        assert_eq!(admitted.batch.lines as usize, 1 + 2 * spellings.len());
    }
}

#[test]
fn one_series_may_be_spelt_in_many_ways() {
    check_spellings(&["m,a=1,b=2", "m,b=2,a=1"], true);
    check_spellings(&[r"m,a=x\y", r"m,a=x\\y"], true);
    check_spellings(&[r"m,a=x=y", r"m,a=x\=y"], true);
    check_spellings(&[r"m,a=x\ \,y,b=1", r"m,b=1,a=x\ \,y"], true);
    check_spellings(&[r"m\,,b\ =1,a=2", r"m\,,a=2,b\ =1"], true);
    check_spellings(&["a=b,t=1", r"a\=b,t=1"], false);
    check_spellings(&["a=b", r"a\=b", r"a\\\=b", "a"], false);
    check_spellings(&["m", "m,a=1", "m,a=11", "m,a=1,b=1", "m,b=1", "m,a=1\\,b\\=1"], false);
}

#[test]
fn a_series_may_end_with_any_character() {
    for value in ["1", "#", "x#", "=", "\"", "x\"", "ü", "\u{0}", "\\,", "\\ ", "\\=", "\\\\x", "-"] {
        let body = format!("m,t={value} f=1i,s=\"a b\" 1\n").repeat(3);
        let admitted = write(&body);
        assert_eq!(admitted.errors, [], "{body}");
        assert_eq!(admitted.batch.tables[0].rows, [0, 0, 0], "{body}");
        assert_eq!(admitted.batch.tables.len(), 1);
    }
}

#[test]
fn a_field_twice_is_found_also_where_it_came_with_two_types() {
    let admitted = write("m a=1 1\nm a=1i 2\nm a=2,a=2i 3\nm a=3i,a=3 4\nm x=1,a=4 5\nm a=5i,x=1,a=5 6\n");
    let messages = told(&admitted);
    assert_eq!(messages.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 6]);
    for (_, message) in &messages[1..] {
        assert_eq!(message, "the field 'a' stands twice in the line");
    }
}

#[test]
fn a_tag_that_is_a_field_of_the_same_line_is_found_also_where_both_are_known() {
    let admitted = write("m t=1i 1\nm,t=a f=1 2\nm,t=b t=2i 3\nm,t=a t=3i 4\nm,t=a f=2 5\n");
    let messages = told(&admitted);
    assert_eq!(messages.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!((&*messages[1].1, &*messages[2].1), ("'t' is a tag and a field", "'t' is a tag and a field"));
}

#[test]
fn a_quote_in_a_name_begins_no_text() {
    let admitted = write("m f\"=1 1\nm g=2 2\nm,t=\"a f=1 3\n\"m h=1 4\n");
    assert_eq!((admitted.batch.lines, admitted.errors.len()), (4, 0));
}

#[test]
fn rows_without_a_field_are_told_apart_from_rows_with_it() {
    let admitted = write("m a=1i 1\nm b=2i 2\nm b=3i,a=4i 3\nm a=5i 4\nn a=1i 5\n");
    let [m, n] = &admitted.batch.tables[..] else { panic!("{:?}", admitted.batch) };
    let column = |name: &str| m.fields.iter().find(|field| field.name == name).expect("the field");
    assert_eq!(column("a").present, Some(vec![true, false, true, true]));
    assert_eq!(column("a").values, Values::Integer(vec![1, 0, 4, 5]));
    assert_eq!(column("b").present, Some(vec![false, true, true, false]));
    assert_eq!(column("b").values, Values::Integer(vec![0, 2, 3, 0]));
    assert_eq!(n.fields[0].present, None);
    assert_eq!(admitted.batch.span, Some((1_000_000_000, 5_000_000_000)));
    assert_eq!(admitted.batch.lines, 5);
}

#[test]
fn a_refused_line_leaves_nothing_behind() {
    let admitted = write("m,x=1 a=1i,new=2i,a=3i 1\nn,y=1 f=1,f=2 1\nm,t=1 a=1i 2\nm,t=1 b=2i,b=3i 3\n");
    let [table] = &admitted.batch.tables[..] else { panic!("{:?}", admitted.batch) };
    assert_eq!(table.fields.iter().map(|field| &*field.name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(table.series.len(), 1);
    assert_eq!(admitted.errors.iter().map(|error| error.line_number).collect::<Vec<_>>(), [1, 2, 4]);
}

#[test]
fn only_lines_that_are_neither_empty_nor_comments_count() {
    let admitted = write("# a=\"b\n\n   \nm f=1 1\n  # \"\n\nm f=x 1\n\t\nm f=\"\n\n\" 1\nm f 2");
    let errors: Vec<_> = admitted.errors.iter().map(|e| (e.line_number, e.original.as_str())).collect();
    assert_eq!(errors, [(2, "m f=x 1"), (3, "m f=\"\n\n\" 1"), (4, "m f 2")]);
    assert_eq!(admitted.text, "m f=1 1000000000\n");
    for body in ["", "\n", "# m f=1", " \n#\n\t"] {
        for partial in [true, false] {
            assert_eq!(admit(&mut Catalog::default(), body, partial), Err(Refused::Empty), "{body:?}");
        }
    }
    assert_eq!(Refused::Empty.to_string(), "incoming write was empty");
}

#[test]
fn the_text_is_the_body_itself_where_that_is_right_already() {
    let check = |body: &str, expect: &str, is_borrowed: bool| {
        let admitted = write(body);
        assert_eq!(admitted.text, expect, "{body:?}");
        assert_eq!(matches!(admitted.text, Cow::Borrowed(_)), is_borrowed, "{body:?}");
    };
    let good = "m,t=a f=1i 1795385500000000000\nm g=\"a 1\nb\" 1795385500000000001\n";
    check(good, good, true);
    check(good.trim_end(), good, false);
    check("m f=1i", "m f=1i 1795385500000000000\n", false);
    check("m f=1i,g=\"x 12\"", "m f=1i,g=\"x 12\" 1795385500000000000\n", false);
    check("m f=1i 1795385500\n", "m f=1i 1795385500000000000\n", false);
    check("m f=1i   -1795385500  \n", "m f=1i -1795385500000000000\n", false);
    check(
        " m f=1i 1795385500000000000\n\n#\nm g=-2 5\n",
        "m f=1i 1795385500000000000\nm g=-2 5000000000\n",
        false,
    );
}

#[test]
fn times_are_converted_and_bounded() {
    let check = |time: &str, precision: Precision, expect: Result<i64, &str>| {
        let body = format!("m f=1 {time}");
        let parsed = parse(&body, precision, NOW);
        let admitted = Catalog::default().admit("kvm", parsed, true).expect("a line");
        match expect {
            Ok(expect) => assert_eq!(admitted.batch.span, Some((expect, expect)), "{time} {precision:?}"),
            Err(words) => assert!(admitted.errors[0].message.contains(words), "{:?}", admitted.errors),
        }
    };
    check("1795385500", Precision::Auto, Ok(NOW));
    check("1795385500", Precision::Second, Ok(NOW));
    check("1795385500000", Precision::Millisecond, Ok(NOW));
    check("1795385500000000", Precision::Microsecond, Ok(NOW));
    check("1795385500", Precision::Nanosecond, Ok(1_795_385_500));
    check("", Precision::Second, Err("neither a field nor a timestamp"));
    check("-9223372036854775808", Precision::Nanosecond, Ok(i64::MIN));
    check("9223372037", Precision::Second, Err("out of range"));
    check("1795385500000", Precision::Second, Err("its unit is taken for seconds"));
    check("1795471900", Precision::Second, Ok(NOW + limits::MAX_AHEAD_NS));
    check("1795471901", Precision::Second, Err("more than a day ahead of this server's clock"));
    check("1795471901000000000", Precision::Auto, Err("more than a day ahead"));

    // The journal's entries are read again whatever the clock says.
    let parsed = parse("m f=1 9223372036854775807\n", Precision::Nanosecond, i64::MAX);
    assert_eq!(
        Catalog::default().admit("kvm", parsed, false).expect("a line").batch.span,
        Some((i64::MAX, i64::MAX))
    );
}

/// The line numbers and messages of a partial write.
fn told(admitted: &Admitted<'_>) -> Vec<(u32, String)> {
    admitted.errors.iter().map(|error| (error.line_number, error.message.clone())).collect()
}

#[test]
fn a_field_of_another_type_is_refused_in_influxdbs_words() {
    let mut catalog = Catalog::default();
    admit(&mut catalog, "m v=1.5", true).expect("a line");
    let before = catalog.clone();
    let body = "m v=1i 1\nm v=2.5 2\nm v=3u 3\nm v=\"x\" 4\nm v=t 5\nm,v=x w=1 6\n";
    let words = |got: &str| {
        format!(
            "invalid column type for column 'v', expected iox::column_type::field::float, got iox::column_type::{got}"
        )
    };
    let expect: Vec<_> = [
        (1, words("field::integer")),
        (3, words("field::uinteger")),
        (4, words("field::string")),
        (5, words("field::boolean")),
        (6, words("tag")),
    ]
    .into();
    assert!(
        matches!(admit(&mut catalog, body, false), Err(Refused::Lines { errors, .. }) if errors.len() == 5)
    );
    assert_eq!(catalog, before);
    let admitted = admit(&mut catalog, body, true).expect("lines");
    assert_eq!(told(&admitted), expect);
    assert_eq!(admitted.text, "m v=2.5 2000000000\n");
    assert_eq!(admitted.batch.lines, 1);
    assert!(!admitted.schema_changed);
    assert_eq!(catalog, before, "a refused line has changed the schema");
}

#[test]
fn the_first_line_that_is_taken_says_what_a_column_is() {
    let mut catalog = Catalog::default();
    // The first line is bad, so that its `v` counts for nothing.
    let body = "m v=1i,x=\n\
                m v=1.5,w=2i 1\n\
                m v=2i 2\n\
                m w=1i,u=1i 3\n\
                m,u=tag w=1i 4\n\
                m w=1.5,new=1i 5\n\
                m new=1.5 6\n";
    let admitted = admit(&mut catalog, body, true).expect("lines");
    assert_eq!(admitted.errors.iter().map(|error| error.line_number).collect::<Vec<_>>(), [1, 3, 5, 6]);
    assert_eq!(admitted.text, "m v=1.5,w=2i 1000000000\nm w=1i,u=1i 3000000000\nm new=1.5 6000000000\n");
    let float = Column::Field(FieldType::Float);
    let integer = Column::Field(FieldType::Integer);
    let columns: Vec<_> = catalog.columns("kvm", "m").collect();
    assert_eq!(columns, [("new", float), ("u", integer), ("v", float), ("w", integer)]);
    assert!(admitted.schema_changed);
    let table = &admitted.batch.tables[0];
    assert_eq!(table.rows, [0, 0, 0]);
    assert_eq!(table.fields.len(), 4);
    let v = table.fields.iter().find(|field| field.name == "v").expect("the field");
    assert_eq!(
        (&v.values, &v.present),
        (&Values::Float(vec![1.5, 0.0, 0.0]), &Some(vec![true, false, false]))
    );
}

#[test]
fn all_or_nothing_tells_the_first_error_of_all() {
    let mut catalog = Catalog::default();
    admit(&mut catalog, "m v=1.5", true).expect("a line");
    let refused = admit(&mut catalog, "m v=1i 1\nm v=\n", false);
    let Err(Refused::Lines { errors, untold: 0 }) = refused else { panic!("{refused:?}") };
    assert_eq!(errors.iter().map(|error| error.line_number).collect::<Vec<_>>(), [1, 2]);
    let message = Refused::Lines { errors, untold: 3 }.to_string();
    assert!(message.starts_with("5 lines are bad, first line 1: invalid column type"), "{message}");
}

#[test]
fn a_write_of_only_bad_lines_makes_no_database() {
    let mut catalog = Catalog::default();
    let admitted = admit(&mut catalog, "m v=\n", true).expect("a line");
    assert_eq!((admitted.batch, &*admitted.text, admitted.errors.len()), (Batch::default(), "", 1));
    assert!(!admitted.schema_changed);
    assert_eq!(catalog, Catalog::default());
}

#[test]
fn the_schema_changes_only_where_something_is_new() {
    let mut catalog = Catalog::default();
    let mut changed = |body: &str| admit(&mut catalog, body, true).expect("lines").schema_changed;
    assert!(changed("m,t=a f=1"));
    assert!(!changed("m,t=b f=2"));
    assert!(changed("m,u=b f=2"));
    assert!(changed("m g=2"));
    assert!(changed("n g=2"));
    assert!(!changed("n g=2\nm,t=a,u=b f=1,g=2"));
}

#[test]
fn limits_of_names_and_lines() {
    let long = "x".repeat(limits::MAX_NAME_BYTES + 1);
    let fits = "x".repeat(limits::MAX_NAME_BYTES);
    check_refused(&format!("{long} f=1"), "the table name 'xxx");
    check_refused(&format!("{} f=1", "ü".repeat(34)), "the table name 'üüü");
    check_refused(&format!("m {long}=1"), "the field name 'xxx");
    check_refused(&format!("m,{long}=a f=1"), "the tag name 'xxx");
    check_taken(&format!("{fits},{fits}=a a{}=1", &fits[1..]));
    check_taken(&format!("{} f=1", "ü".repeat(33)));
    check_taken("../../etc f=1");
    check_refused(&format!("m f=\"{}\"", "x".repeat(limits::MAX_LINE_BYTES)), "longer than 1048576 bytes");
    check_taken(&format!("m f=\"{}\"", "x".repeat(limits::MAX_LINE_BYTES - 6)));
}

#[test]
fn a_table_has_as_many_columns_as_its_limit() {
    let fields = |from: usize, to: usize| (from..to).map(|n| format!("f{n}=1")).collect::<Vec<_>>().join(",");
    let max = limits::MAX_COLUMNS;
    let words = "the table 'm' cannot have more than 500 tags and fields";
    check_refused(&format!("m {}", fields(0, max + 1)), words);
    check_refused(&format!("m,t=a {}", fields(0, max)), words);

    let mut catalog = Catalog::default();
    let body =
        format!("m,t=a {} 1\nm f0=1,one_more=1 2\nm {} 3\nm,u=b f0=1 4\n", fields(0, max - 1), fields(0, 9));
    let admitted = admit(&mut catalog, &body, true).expect("lines");
    assert_eq!(told(&admitted), [(2, words.to_owned()), (4, words.to_owned())]);
    assert_eq!(catalog.columns("kvm", "m").count(), max);
    let admitted = admit(&mut catalog, "m t2=1\nm f1=2\n", true).expect("lines");
    assert_eq!(told(&admitted), [(1, words.to_owned())]);
}

#[test]
fn the_names_of_roll_ups_are_kept_for_them() {
    let words = "table 'm_1h' is made by kvmetry, as the roll-ups of another one: write to that one";
    let mut catalog = Catalog::default();
    // Together with the other table, and after it.
    let admitted = admit(&mut catalog, "m_1h f=1 1\nm f=1 1\n", true).expect("lines");
    assert_eq!(told(&admitted), [(1, words.to_owned())]);
    let admitted = admit(&mut catalog, "m_1h f=1 1\nm_1d f=1 1\n", true).expect("lines");
    assert_eq!(told(&admitted), [(1, words.to_owned())]);
    // A table of such a name may be there before.
    let admitted = admit(&mut catalog, "n_1m f=1 1\n", true).expect("lines");
    assert_eq!(told(&admitted), []);
    let admitted = admit(&mut catalog, "n f=1 1\nn_1m f=2 2\n", true).expect("lines");
    assert_eq!(told(&admitted), []);
}

#[test]
fn the_names_of_columns_of_roll_ups_are_kept_for_them() {
    let words = |tag: &str| {
        format!("the tag name '{tag}' is taken: the roll-ups of field 'a' have a column of that name")
    };
    let mut catalog = Catalog::default();
    let mut told = |body: &str| told(&admit(&mut catalog, body, true).expect("lines"));
    // Together with the field, and after it.
    assert_eq!(told("m a=1 1\nm,a_last=x a=1 2\nm,a_lasts=x a=1 3\nm a_last=1 4\n"), [(2, words("a_last"))]);
    assert_eq!(told("m,a_mean=x b=1 1\nm,b_max=x c=1 1\n"), [(1, words("a_mean"))]);
    // And in one line with it.
    assert_eq!(told("n,a_last=x a=1 1\n"), [(1, words("a_last"))]);
    // A tag of such a name may be there before: then the roll-ups have no such column.
    assert_eq!(told("n,a_last=x b=1 1\n"), []);
    assert_eq!(told("n a=1 1\nn,a_last=x a=1 2\n"), []);
}

#[test]
fn a_database_has_as_many_tables_as_its_limit() {
    let max = limits::MAX_TABLES;
    let body: String = (0..max).map(|n| format!("t{n} f=1 1\n")).collect();
    let mut catalog = Catalog::default();
    assert_eq!(
        admit(&mut catalog, &format!("{body}more f=1 1\nt7 f=2 1\n"), true).expect("lines").errors.len(),
        1
    );
    assert_eq!(catalog.tables("kvm").count(), max);
    let admitted = admit(&mut catalog, "more f=1 1\nt7 f=2 1\n", true).expect("lines");
    assert_eq!(told(&admitted), [(1, "the database 'kvm' cannot have more than 2000 tables".to_owned())]);
    assert_eq!(admitted.batch.lines, 1);
}

#[test]
fn the_catalogue_has_a_limit_that_a_journal_keeps() {
    let mut catalog = Catalog::default();
    let words = "no room for a new table or column: those of all databases may take 4063232 bytes";
    // The longest names: 500 columns of a table, table after table.
    let name = |n: usize| format!("{n:0>width$}", width = limits::MAX_NAME_BYTES);
    let columns: Vec<_> = (0..limits::MAX_COLUMNS).map(|n| format!("{}=1", name(n))).collect();
    let line = |table: usize| format!("{} {} 1\n", name(table), columns.join(","));
    let mut tables = 0;
    let error = loop {
        let body = line(tables);
        let admitted = admit(&mut catalog, &body, true).expect("a line");
        if let Some((1, why)) = told(&admitted).first() {
            assert_eq!((admitted.batch.lines, admitted.schema_changed), (0, false));
            break why.clone();
        }
        tables += 1;
    };
    assert!(error.contains(words), "{error}");
    assert!((30..60).contains(&tables), "{tables}");
    // What needs nothing new is taken, and what still fits; of a write that is too much for it the lines that fit.
    let (known, new) = (line(0), line(tables));
    let body = format!("{known}m f=1 1\n{new}m f=2 2\n");
    let admitted = admit(&mut catalog, &body, true).expect("lines");
    assert_eq!(told(&admitted).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3]);
    assert_eq!(admitted.batch.lines, 3);
    let before = catalog.to_bytes();
    let all = parse(&new, Precision::Auto, NOW);
    assert!(matches!(catalog.admit("other", all, false), Err(Refused::Lines { .. })));
    assert!(catalog.to_bytes() == before);
    // Databases and their retentions fit beside it, each as long as it can be.
    for n in 1..limits::MAX_DATABASES {
        let name = format!("{n:0>width$}", width = limits::MAX_DATABASE_NAME_BYTES);
        catalog.create_database(&name, Some(std::time::Duration::from_secs(u64::MAX))).expect("a database");
    }
    assert!(catalog.to_bytes().len() <= 4 << 20, "{}", catalog.to_bytes().len());
    // What it counts is what it writes, whichever way it came about.
    let read = Catalog::from_bytes(&catalog.to_bytes()).expect("a catalogue");
    assert!(read == catalog);
    let mut merged = Catalog::default();
    merged.merge(&catalog).expect("no conflict");
    assert!(merged == catalog);
}

#[test]
fn there_are_as_many_databases_as_their_limit() {
    let mut catalog = Catalog::default();
    let mut write = |database: &str| {
        catalog
            .admit(database, parse("m f=1 1", Precision::Auto, NOW), true)
            .map(|admitted| admitted.batch.lines)
    };
    for n in 0..limits::MAX_DATABASES {
        assert_eq!(write(&format!("db{n}")), Ok(1));
    }
    assert_eq!(write("db"), Err(Refused::TooManyDatabases));
    assert_eq!(write("db7"), Ok(1));
    assert_eq!(catalog.create_database("db", None), Err(Refused::TooManyDatabases));
    assert_eq!(catalog.create_database("db7", None), Ok(false));
}

#[test]
fn a_database_can_be_made_before_it_is_written_to() {
    let mut catalog = Catalog::default();
    assert_eq!(catalog.create_database("kvm", None), Ok(true));
    assert_eq!(catalog.create_database("kvm", None), Ok(false));
    assert!(matches!(catalog.create_database("a.b", None), Err(Refused::DatabaseName(_))));
    assert!(catalog.databases().eq(["kvm"]));
    assert_eq!(Catalog::from_bytes(&catalog.to_bytes()).as_ref(), Ok(&catalog));
    assert!(admit(&mut catalog, "m f=1", true).expect("a line").schema_changed);
}

#[test]
fn a_small_body_cannot_ask_for_much_memory() {
    let fields: Vec<_> = (0..limits::MAX_COLUMNS).map(|n| format!("f{n}=1")).collect();
    let mut body = format!("m {} 1\n", fields.join(","));
    let rows = limits::MAX_CELLS / limits::MAX_COLUMNS;
    body.push_str(&"m f0=1 1\n".repeat(rows + 9));
    let admitted = write(&body);
    assert_eq!(admitted.batch.lines as usize, rows);
    assert_eq!(admitted.errors.len(), 10);
    assert!(admitted.errors[0].message.contains("split it"), "{:?}", admitted.errors[0]);

    let admitted_lines = limits::MAX_TOLD_ERRORS as u32 + 7;
    let body = "m\n".repeat(admitted_lines as usize);
    let admitted = write(&body);
    assert_eq!((admitted.errors.len(), admitted.untold_errors), (limits::MAX_TOLD_ERRORS, 7));
}

#[test]
fn names_of_databases() {
    let check = |name: &str, expect: Result<(), &str>| match (limits::check_database_name(name), expect) {
        (Ok(()), Ok(())) => {}
        (Err(got), Err(words)) => assert!(got.contains(words), "{got}"),
        (got, expect) => panic!("{name}: {got:?}, not {expect:?}"),
    };
    for good in ["kvm", "9", "a-b_c", "telegraf/autogen", "A", &"x".repeat(64)] {
        check(good, Ok(()));
    }
    check("", Err("empty"));
    check(&"x".repeat(65), Err("longer than 64 bytes"));
    for bad in ["..", ".", "a.b", "a b", "ü", "a\nb", "a%2e", "a\\b"] {
        check(bad, Err("characters other than"));
    }
    for bad in ["/", "/a", "a/", "a/b/c", "a//b", "_internal", "-a", "a/_b"] {
        check(bad, Err("letter or digit"));
    }
    let refused = Catalog::default().admit("..", parse("m f=1", Precision::Auto, NOW), true);
    assert!(matches!(refused, Err(Refused::DatabaseName(why)) if why.contains("'..'")));
}

#[test]
fn a_body_that_is_not_utf_8_tells_where() {
    assert_eq!(text(b"m f=1"), Ok("m f=1"));
    let fault = text(b"m,t=\xc3\xbc\xff f=1").expect_err("no UTF-8");
    assert_eq!(fault.to_string(), "the body is not UTF-8 from byte 6 on");
}

#[test]
fn a_catalogue_survives_as_bytes() {
    let mut catalog = Catalog::default();
    let body = "m,t\\ u=a f=1,i=1i,u=1u,s=\"x\",b=t 1\nä\\ b f=1 1\n";
    for database in ["kvm", "a/b"] {
        catalog.admit(database, parse(body, Precision::Auto, NOW), false).expect("lines");
    }
    let bytes = catalog.to_bytes();
    assert!(
        bytes.starts_with(b"kvmetry catalog 1\ndatabase a/b\ntable m\nboolean b\nfloat f\n"),
        "{bytes:?}"
    );
    assert_eq!(Catalog::from_bytes(&bytes), Ok(catalog));
    let empty = Catalog::default();
    assert_eq!(Catalog::from_bytes(&empty.to_bytes()), Ok(empty));
}

#[test]
fn damaged_and_newer_catalogues_are_told() {
    let check = |bytes: &[u8], line: usize, expected: &str| match Catalog::from_bytes(bytes) {
        Err(CatalogFault::Malformed { line: at, expected: got }) => assert_eq!((at, got), (line, expected)),
        other => panic!("{other:?}"),
    };
    check(b"", 1, "ended by a newline");
    check(b"kvmetry catalog 1", 1, "ended by a newline");
    check(b"kvmetry catalog 1\ndatabase a\ntable", 3, "ended by a newline");
    check(b"kvmetry catalog x\n", 1, "'kvmetry catalog' and a version");
    check(b"database a\n", 1, "'kvmetry catalog' and a version");
    check(b"kvmetry catalog 1\ntable a\n", 2, "behind a database");
    check(b"kvmetry catalog 1\ndatabase a\ntag a\n", 3, "behind a table");
    check(b"kvmetry catalog 1\ndatabase a\ntable b\ndatabase c\ntag a\n", 5, "behind a table");
    check(b"kvmetry catalog 1\ndatabase a\ndouble a\n", 3, "a database, a table or a column");
    check(b"kvmetry catalog 1\ndatabase a\ndatabase a\n", 3, "a name that was not there before");
    check(b"kvmetry catalog 1\ndatabase a\n\n", 3, "a word and a name");
    check(b"kvmetry catalog 1\ndatabase \n", 2, "a name without control characters");
    check(b"kvmetry catalog 1\ndatabase a\xff\n", 2, "UTF-8");
    let newer = Catalog::from_bytes(b"kvmetry catalog 2\nwhatever\n").expect_err("a newer one");
    assert_eq!(newer, CatalogFault::Newer { version: 2 });
    assert!(newer.to_string().contains("version 2, this kvmetry knows up to 1"), "{newer}");
}

#[test]
fn catalogues_are_merged_unless_they_disagree() {
    let catalog = |database: &str, body: &str| {
        let mut catalog = Catalog::default();
        catalog.admit(database, parse(body, Precision::Auto, NOW), false).expect("lines");
        catalog
    };
    let mut ours = catalog("a", "m,t=x f=1 1\nn f=1i 1\n");
    ours.merge(&catalog("a", "m,u=x f=1,g=2i 1\no f=1i 1\n")).expect("no conflict");
    ours.merge(&catalog("b", "m f=1i 1\n")).expect("no conflict");
    let mut expect = catalog("a", "m,t=x,u=x f=1,g=2i 1\nn f=1i 1\no f=1i 1\n");
    expect.admit("b", parse("m f=1i 1\n", Precision::Auto, NOW), false).expect("lines");
    assert_eq!(ours, expect);

    let conflict = ours.merge(&catalog("a", "aa f=1 1\nm f=1i 1\n"));
    let (table, column) = ("m".to_owned(), "f".to_owned());
    let (float, integer) = (Column::Field(FieldType::Float), Column::Field(FieldType::Integer));
    assert_eq!(
        conflict,
        Err(MergeConflict { database: "a".to_owned(), table, column, ours: float, theirs: integer })
    );
    assert_eq!(ours, expect, "a refused merge has changed something");
}
