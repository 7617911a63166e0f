//! Calls without a network; real clients are in kvmetry's tests.

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::datatypes::Int32Type;
use arrow::ipc::CompressionType;
use arrow::util::pretty::pretty_format_batches;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes,
    CommandGetTables, CommandPreparedStatementQuery, CommandStatementQuery, ProstMessageExt,
};
use disk::double::Double;
use telemetry::lines::{Precision, parse};

use super::*;
use crate::sql::QueryLimits;
use crate::{Options, Store};

fn flight(lines: &str) -> Flight {
    let disk = Arc::new(Double::new());
    let (store, _) = Store::open(disk, std::path::Path::new("/store"), Options::default()).unwrap();
    let (batch, bad) = parse(lines, Precision::Nanosecond, i64::MAX).into_batch();
    assert_eq!(bad, 0);
    store.apply(1, "db", &batch).unwrap();
    let engine = Engine::new(&store, QueryLimits { threads: 1, ..QueryLimits::default() }).unwrap();
    Flight { engine: Arc::new(engine), default_database: "empty", exists: Box::new(|name| name == "empty") }
}

fn of_database<T>(message: T, database: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(database) = database {
        request.metadata_mut().insert("database", database.parse().unwrap());
    }
    request
}

async fn rows(flight: &Flight, ticket: &[u8], database: Option<&str>) -> Result<Vec<RecordBatch>, Status> {
    let ticket = of_database(Ticket::new(ticket.to_vec()), database);
    let messages = flight.do_get(ticket).await?.into_inner();
    let messages = messages.map_err(|it| FlightError::Tonic(Box::new(it)));
    FlightRecordBatchStream::new_from_flight_data(messages).try_collect().await.map_err(Status::from)
}

/// Asks as clients of Flight SQL do, and sees to it that what was promised is what comes.
async fn ask(flight: &Flight, command: &impl ProstMessageExt) -> Result<Vec<RecordBatch>, Status> {
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let info = flight.get_flight_info(of_database(descriptor.clone(), Some("db"))).await?.into_inner();
    let promised = info.clone().try_decode_schema().unwrap();
    let again = flight.get_schema(of_database(descriptor, Some("db"))).await?.into_inner();
    assert_eq!(Schema::try_from(&again).unwrap(), promised);
    let [endpoint] = &info.endpoint[..] else { panic!("{info:?}") };
    let ticket = endpoint.ticket.clone().unwrap().ticket;
    let batches = rows(flight, &ticket, Some("db")).await?;
    for batch in &batches {
        assert_eq!(*batch.schema(), promised);
    }
    Ok(batches)
}

fn table(batches: &[RecordBatch]) -> String {
    pretty_format_batches(batches).unwrap().to_string()
}

const LINES: &str = "vm,VMID=a cpu=1i,mem=2.5 1\nvm,VMID=b cpu=3i,name=\"x\" 2\nnet,VMID=a rx=1i 1";

#[tokio::test]
async fn the_columns_that_are_promised_come() {
    let flight = flight(LINES);
    for (sql, expect_rows) in [
        ("SELECT * FROM vm", 2),
        ("SELECT * FROM vm WHERE false", 0),
        ("SELECT \"VMID\", count(*), max(cpu), avg(mem) FROM vm GROUP BY \"VMID\"", 2),
        ("SELECT cpu + 1.5, CASE WHEN cpu > 1 THEN 1 ELSE 2.5 END, upper(\"VMID\") FROM vm", 2),
        ("SELECT date_bin(INTERVAL '1 hour', time) AS t, min(name) FROM vm GROUP BY t", 1),
        (
            "SELECT date_bin_gapfill(INTERVAL '1 hour', time) AS t, count(*) AS n, locf(max(cpu)) FROM vm \
          WHERE time >= '1970-01-01' AND time < '1970-01-01T03:00:00Z' GROUP BY t",
            3,
        ),
        ("SELECT \"VMID\" || name AS n, 'a' || 'b', concat(\"VMID\", cpu) FROM vm", 2),
        ("SELECT 1 UNION ALL SELECT 2.5", 2),
        ("SELECT a.cpu, b.rx FROM vm a LEFT JOIN net b ON a.\"VMID\" = b.\"VMID\"", 2),
        ("SELECT * FROM vm_1m", 2),
        ("SELECT NULL, 'text', TIMESTAMP '2026-01-01', array_agg(cpu) FROM vm", 1),
        ("SHOW TABLES", 13),
        ("EXPLAIN SELECT 1", 2),
    ] {
        let found =
            ask(&flight, &CommandStatementQuery { query: sql.to_owned(), transaction_id: None }).await;
        let found = found.unwrap_or_else(|status| panic!("{sql}: {status}"));
        assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), expect_rows, "{sql}");
    }
}

#[tokio::test]
async fn a_ticket_of_influxdb() {
    let flight = flight(LINES);
    let ticket =
        br#" {"database":"db","sql_query":"SELECT cpu FROM vm WHERE \"VMID\" = $vm","params":{"vm":"b"}}"#;
    let found = rows(&flight, ticket, None).await.unwrap();
    assert_eq!(table(&found), "+-----+\n| cpu |\n+-----+\n| 3   |\n+-----+");
    // The header, where the ticket names none.
    let found = rows(&flight, br#"{"sql_query":"SELECT count(*) AS n FROM vm"}"#, Some("db")).await.unwrap();
    assert_eq!(table(&found), "+---+\n| n |\n+---+\n| 2 |\n+---+");
    // A number beyond i64 is itself, and a name without a value is whose fault it is.
    let large = br#"{"sql_query":"SELECT $a AS a","params":{"a":18446744073709551610}}"#;
    let found = rows(&flight, large, Some("db")).await.unwrap();
    assert!(table(&found).contains("| 18446744073709551610 |"), "{}", table(&found));
    let status = rows(&flight, br#"{"sql_query":"SELECT $a AS a"}"#, Some("db")).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "$a has no value: give it one in params")
    );
    let refused = async |ticket: &str, database| {
        let status = rows(&flight, ticket.as_bytes(), database).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let (code, _) = refused(r#"{"sql_query":"SELECT * FROM vm"}"#, Some("nix")).await;
    assert_eq!(code, Code::NotFound);
    let (code, message) = refused(r#"{"sql_query":"SELECT * FROM vm"}"#, None).await;
    assert_eq!(code, Code::InvalidArgument, "the default database is there, without tables: {message}");
    let (code, _) = refused(r#"{"sql_query":"SELECT nix FROM vm"}"#, Some("db")).await;
    assert_eq!(code, Code::InvalidArgument);
    let (code, message) = refused(r#"{"sql_query":"SELECT 1","query_type":"flux"}"#, Some("db")).await;
    assert_eq!((code, message.contains("ask in SQL")), (Code::Unimplemented, true));
    for strange in ["", "nix", "\u{1}", "{", r#"{"sql_query":7}"#] {
        assert_eq!(refused(strange, Some("db")).await.0, Code::InvalidArgument, "{strange:?}");
    }
}

#[tokio::test]
async fn a_prepared_statement_is_its_handle() {
    let flight = flight(LINES);
    let create = ActionCreatePreparedStatementRequest {
        query: "SELECT cpu FROM vm WHERE \"VMID\" = ? AND cpu > ?".to_owned(),
        transaction_id: None,
    };
    let action = of_database(Action::new(CREATE, create.as_any().encode_to_vec()), Some("db"));
    let results: Vec<_> = flight.do_action(action).await.unwrap().into_inner().try_collect().await.unwrap();
    let made: ActionCreatePreparedStatementResult = unpack(&results[0].body).unwrap();
    let schema = |bytes: &Bytes| Schema::try_from(IpcMessage(bytes.clone())).unwrap();
    let parameters = schema(&made.parameter_schema);
    let parameters: Vec<_> =
        parameters.fields().iter().map(|it| (it.name().as_str(), it.data_type())).collect();
    assert_eq!(parameters.iter().map(|it| it.0).collect::<Vec<_>>(), ["$1", "$2"]);
    assert_eq!(schema(&made.dataset_schema).field(0).name(), "cpu");

    let mut statement = Statement::decode(&made.prepared_statement_handle).unwrap();
    let values: [(_, ArrayRef); 2] =
        [("a", Arc::new(StringArray::from(vec!["b"]))), ("b", Arc::new(Int32Array::from(vec![1])))];
    let row = RecordBatch::try_from_iter(values).unwrap();
    statement.bind(&row).unwrap();
    let bound = CommandPreparedStatementQuery { prepared_statement_handle: statement.encode().unwrap() };
    let found = ask(&flight, &bound).await.unwrap();
    assert_eq!(table(&found), "+-----+\n| cpu |\n+-----+\n| 3   |\n+-----+");
    // Gaps are between times that are not known yet.
    let gaps = "SELECT date_bin_gapfill($1, time) AS t, count(*) AS n FROM vm WHERE time >= $2 GROUP BY 1";
    let create = ActionCreatePreparedStatementRequest { query: gaps.to_owned(), transaction_id: None };
    let action = of_database(Action::new(CREATE, create.as_any().encode_to_vec()), Some("db"));
    let results: Vec<_> = flight.do_action(action).await.unwrap().into_inner().try_collect().await.unwrap();
    let prepared: ActionCreatePreparedStatementResult = unpack(&results[0].body).unwrap();
    assert!(schema(&prepared.dataset_schema).field(1).is_nullable());
    // Without its values it cannot run.
    let unbound = CommandPreparedStatementQuery { prepared_statement_handle: made.prepared_statement_handle };
    assert!(ask(&flight, &unbound).await.is_err());

    let drop =
        ActionCreatePreparedStatementRequest { query: "DROP TABLE vm".to_owned(), transaction_id: None };
    let action = of_database(Action::new(CREATE, drop.as_any().encode_to_vec()), Some("db"));
    assert_eq!(flight.do_action(action).await.err().unwrap().code(), Code::InvalidArgument);
}

/// Values as a client sends them: schema, dictionaries, rows.
async fn value_messages(row: &RecordBatch) -> Vec<FlightData> {
    use arrow_flight::encode::DictionaryHandling::Resend;
    let encoder = FlightDataEncoderBuilder::new().with_dictionary_handling(Resend);
    encoder.build(stream::iter([Ok(row.clone())])).try_collect().await.unwrap()
}

async fn bound(messages: Vec<FlightData>) -> Result<Statement, Status> {
    values::bound(Statement::new("SELECT ?, ?").unwrap(), stream::iter(messages).map(Ok).boxed()).await
}

/// Texts, one of them in a dictionary.
fn two_values(rows: usize) -> RecordBatch {
    let tag: DictionaryArray<Int32Type> = std::iter::repeat_n("b", rows).collect();
    let text = StringArray::from_iter_values(std::iter::repeat_n("a long text ".repeat(10), rows));
    RecordBatch::try_from_iter([("a", Arc::new(tag) as ArrayRef), ("b", Arc::new(text))]).unwrap()
}

#[tokio::test]
async fn values_take_no_more_than_their_messages() {
    let good = value_messages(&two_values(1)).await;
    assert_eq!(good.len(), 3, "a schema, a dictionary, a row");
    let statement = bound(good.clone()).await.unwrap();
    assert_eq!(statement.values["1"], Param::Text("b".to_owned()));
    assert_eq!(statement.values["2"], Param::Text("a long text ".repeat(10)));
    let refused = async |messages, expect: &str| {
        let status = bound(messages).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expect), "{status}");
    };
    refused(value_messages(&two_values(2)).await, "one row").await;
    let again = [good.clone(), vec![good[2].clone()]].concat();
    refused(again, "one row").await;
    let mut short = good.clone();
    short[2].data_body = short[2].data_body.slice(..8);
    refused(short, "a buffer ends beyond its message").await;
    // It says that it becomes 2^45 bytes, or is honest: one is never asked.
    let lz4 = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
    let encoder = FlightDataEncoderBuilder::new().with_options(lz4);
    let bomb = encoder.build(stream::iter([Ok(two_values(1))]));
    let mut bomb: Vec<FlightData> = bomb.try_collect().await.unwrap();
    refused(bomb.clone(), "uncompressed").await;
    let last = bomb.last_mut().unwrap();
    let mut body = last.data_body.to_vec();
    let len = body.windows(8).position(|it| it == 120_u64.to_le_bytes()).expect("the length of the text");
    body[len..len + 8].copy_from_slice(&(1_u64 << 45).to_le_bytes());
    last.data_body = body.into();
    refused(bomb, "uncompressed").await;
}

#[tokio::test]
async fn values_that_were_tampered_with_are_bound_or_refused() {
    const TRIES: u64 = 2_000;
    let good = value_messages(&two_values(1)).await;
    let mut taken = 0;
    for seed in 0..TRIES {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut messages = good.clone();
        let message = random.choice(&mut messages).unwrap();
        let part = if random.bool() { &mut message.data_header } else { &mut message.data_body };
        let mut bytes = part.to_vec();
        for _ in 0..random.usize(1..4) {
            let new = match random.u8(..4) {
                0 => 0,
                1 => 127,
                2 => 255,
                _ => random.u8(..),
            };
            match random.choice(&mut bytes) {
                Some(byte) => *byte = new,
                None => bytes.push(new),
            }
        }
        *part = bytes.into();
        match bound(messages).await {
            Ok(_) => taken += 1,
            Err(status) => assert_ne!(status.code(), Code::Internal, "seed {seed}: {status}"),
        }
    }
    assert!(taken > 0 && taken < TRIES, "{taken} were taken");
}

#[tokio::test]
async fn catalogs() {
    let flight = flight(LINES);
    let text = async |command: &dyn Fn() -> Any| {
        let descriptor = FlightDescriptor::new_cmd(command().encode_to_vec());
        let info = flight.get_flight_info(of_database(descriptor, Some("db"))).await.unwrap().into_inner();
        let ticket = info.endpoint[0].ticket.clone().unwrap().ticket;
        table(&rows(&flight, &ticket, Some("db")).await.unwrap())
    };
    assert!(text(&|| CommandGetCatalogs {}.as_any()).await.contains("| public "));
    let pattern = Some("i_x".to_owned());
    let schemas = CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: pattern.clone() };
    let found = text(&|| schemas.as_any()).await;
    assert!(found.contains("| iox ") && !found.contains("information_schema"), "{found}");
    assert!(text(&|| CommandGetTableTypes {}.as_any()).await.contains("| BASE TABLE |"));
    assert!(text(&|| CommandGetSqlInfo { info: vec![0] }.as_any()).await.contains("kvmetry"));
    let mut tables = CommandGetTables { db_schema_filter_pattern: pattern, ..CommandGetTables::default() };
    let found = text(&|| tables.as_any()).await;
    assert_eq!(found.matches("| iox ").count(), 6, "{found}");
    tables.table_name_filter_pattern = Some("v%".to_owned());
    tables.include_schema = true;
    let found = ask(&flight, &tables).await.unwrap();
    let columns = found[0].column_by_name("table_schema").unwrap();
    let schema = arrow::array::cast::as_generic_binary_array::<i32>(columns).value(0);
    let schema = Schema::try_from(IpcMessage(Bytes::copy_from_slice(schema))).unwrap();
    assert_eq!(*schema.field_with_name("VMID").unwrap().data_type(), arrow::datatypes::DataType::Utf8);
}

#[tokio::test]
async fn the_rest_is_refused_by_name() {
    let flight = flight(LINES);
    #[track_caller]
    fn check(status: Status, name: &str) {
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(name), "{status}");
    }
    let keys = CommandGetPrimaryKeys::default();
    check(ask(&flight, &keys).await.unwrap_err(), "\"CommandGetPrimaryKeys\"");
    let action = flight.do_action(Request::new(Action::new("BeginTransaction", ""))).await;
    check(action.err().unwrap(), "\"BeginTransaction\"");
    check(flight.list_flights(Request::new(Criteria::default())).await.err().unwrap(), "\"ListFlights\"");
}

#[test]
fn a_password_is_given_back_as_a_token() {
    let basic = |text: &str| bearer(&format!("Basic {text}"));
    assert_eq!(basic("dXNlcjprdjphYg=="), Some("Bearer kv:ab".to_owned()));
    assert_eq!(basic("dXNlcjprdjphYg"), Some("Bearer kv:ab".to_owned()));
    assert_eq!(basic("dXNlcg=="), None);
    assert_eq!(basic("?"), None);
    assert_eq!(bearer("Bearer abc"), None);
}

#[tokio::test]
async fn tickets_that_were_tampered_with_are_answered_or_refused() {
    const TICKETS: u64 = 2_000;
    let flight = flight(LINES);
    let query = CommandStatementQuery { query: "SELECT max(cpu) FROM vm".to_owned(), transaction_id: None };
    let handle = Statement::new("SELECT * FROM vm WHERE cpu > ?").unwrap().encode().unwrap();
    let good = [
        br#"{"database":"db","sql_query":"SELECT cpu FROM vm WHERE \"VMID\" = $vm","params":{"vm":"b"}}"#
            .to_vec(),
        query.as_any().encode_to_vec(),
        TicketStatementQuery { statement_handle: handle }.as_any().encode_to_vec(),
        CommandGetTables { include_schema: true, ..CommandGetTables::default() }.as_any().encode_to_vec(),
    ];
    let mut answered = 0;
    for seed in 0..TICKETS {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut ticket = good[random.usize(..good.len())].clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..ticket.len());
            match random.u8(..4) {
                0 => ticket[at] = random.u8(..),
                1 => ticket.insert(at, random.u8(32..127)),
                2 => drop(ticket.remove(at)),
                _ => ticket.truncate(at + 1),
            }
        }
        match rows(&flight, &ticket, Some("db")).await {
            Ok(_) => answered += 1,
            Err(status) => assert!(!status.message().contains("panicked"), "seed {seed}: {status}"),
        }
    }
    assert!(answered > 0 && answered < TICKETS, "{answered} were answered");
}
