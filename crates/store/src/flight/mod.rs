//! Arrow Flight over the store: InfluxDB 3's `DoGet` with a JSON ticket, and the part of Flight SQL that Grafana, ADBC
//! and JDBC ask with.
//!
//! ```text
//! DoGet {"database":…,"sql_query":…} ───────────────────────────────┐
//! GetFlightInfo(statement) ──ticket──▶ DoGet(ticket) ───────────────┼─▶ Engine ──▶ FlightData
//! CreatePreparedStatement ──handle──▶ DoPut(values) ──handle──▶ … ──┘
//! ```
//!
//! Tickets and handles are the statement itself, so nothing is kept between two calls and there is nothing to run out
//! of. Nothing can be written: what is not listed here is answered UNIMPLEMENTED by its name.
//!
//! Sources: Arrow's `Flight.proto` and `FlightSql.proto`; the ticket as InfluxDB's own clients send it.

mod catalog;
mod statement;
#[cfg(test)]
mod tests;
mod values;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::IpcWriteOptions;
use arrow::record_batch::RecordBatch;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, Command, DoPutPreparedStatementResult, ProstMessageExt as _,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, IpcMessage, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use self::statement::Statement;
use crate::sql::{Engine, Param, QueryError};

/// How the paths of its methods begin.
pub const PATH: &str = "/arrow.flight.protocol.FlightService/";
/// A request, bytes: a statement within its limit and some values for it. Beyond: OUT_OF_RANGE.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Messages with a statement's values: schema, dictionaries and one row. Beyond, the rest is not read.
const MAX_VALUE_MESSAGES: usize = 64;
/// What clients of InfluxDB and of Flight SQL name the database by; the first that is there counts.
const DATABASE_HEADERS: [&str; 4] = ["database", "bucket", "bucket-name", "iox-namespace-name"];

/// Says whether a database was made, though perhaps nothing was written to it.
pub type Exists = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// What answers at [`PATH`], a service of HTTP/2.
pub type Service = FlightServiceServer<Flight>;

/// Whoever names no database means `default_database`.
pub fn service(engine: Arc<Engine>, default_database: &'static str, exists: Exists) -> Service {
    FlightServiceServer::new(Flight { engine, default_database, exists })
        .max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// Answers calls.
pub struct Flight {
    engine: Arc<Engine>,
    default_database: &'static str,
    exists: Exists,
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").field("default_database", &self.default_database).finish_non_exhaustive()
    }
}

type Messages<T> = BoxStream<'static, Result<T, Status>>;

/// What a client asks for.
enum Asked {
    Rows { database: String, sql: String, values: HashMap<String, Param> },
    Batch(RecordBatch),
}

impl Flight {
    fn database(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let named = DATABASE_HEADERS.iter().find_map(|name| metadata.get(*name));
        match named.map(|value| value.to_str()) {
            None => Ok(self.default_database.to_owned()),
            Some(Ok(name)) => Ok(name.to_owned()),
            Some(Err(_)) => Err(Status::invalid_argument("the header `database` is not ASCII")),
        }
    }

    /// Reads what a ticket or descriptor of Flight SQL asks for. What a catalog is asked is answered at once.
    async fn understand(&self, command: Command, metadata: &MetadataMap) -> Result<Asked, Status> {
        let handle = match command {
            Command::TicketStatementQuery(it) => it.statement_handle,
            Command::CommandPreparedStatementQuery(it) => it.prepared_statement_handle,
            Command::CommandStatementQuery(it) => return self.rows(Statement::new(&it.query)?, metadata),
            Command::CommandGetTables(it) => {
                let database = self.database(metadata)?;
                let tables = self.engine.tables(&database, (self.exists)(&database)).await.map_err(status)?;
                return Ok(Asked::Batch(catalog::tables(it, &tables).map_err(Status::from)?));
            }
            other => return Ok(Asked::Batch(catalog::answer(other)?)),
        };
        self.rows(Statement::decode(&handle)?, metadata)
    }

    fn rows(&self, statement: Statement, metadata: &MetadataMap) -> Result<Asked, Status> {
        let database = self.database(metadata)?;
        Ok(Asked::Rows { database, sql: statement.sql, values: statement.values })
    }

    /// The columns of the answer.
    async fn schema(&self, asked: &Asked) -> Result<SchemaRef, Status> {
        match asked {
            Asked::Batch(batch) => Ok(batch.schema()),
            Asked::Rows { database, sql, values } => {
                let exists = (self.exists)(database);
                let described = self.engine.describe(database, sql, values.clone(), exists).await;
                Ok(sent(&described.map_err(status)?.columns))
            }
        }
    }
}

/// The schema as it is sent: dictionaries of tags as plain text.
fn sent(schema: &SchemaRef) -> SchemaRef {
    let encoder = FlightDataEncoderBuilder::new().with_schema(Arc::clone(schema)).build(stream::empty());
    encoder.known_schema().unwrap_or_else(|| Arc::clone(schema))
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Messages<HandshakeResponse>;
    type ListFlightsStream = Messages<FlightInfo>;
    type DoGetStream = Messages<FlightData>;
    type DoPutStream = Messages<PutResult>;
    type DoActionStream = Messages<arrow_flight::Result>;
    type ListActionsStream = Messages<ActionType>;
    type DoExchangeStream = Messages<FlightData>;

    /// For clients with name and password: the password is a token, which was looked at already, and is given back as
    /// one.
    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let mut response = Response::new(stream::iter([Ok(HandshakeResponse::default())]).boxed());
        if let Some(header) = request.metadata().get("authorization") {
            let bearer = bearer(header.to_str().unwrap_or_default());
            let bearer = bearer.and_then(|text| text.parse().ok()).unwrap_or_else(|| header.clone());
            response.metadata_mut().insert("authorization", bearer);
        }
        Ok(response)
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let (metadata, _, descriptor) = request.into_parts();
        let command = command(&descriptor.cmd)?;
        let ticket = match &command {
            Command::CommandStatementQuery(query) => {
                let statement_handle = Statement::new(&query.query)?.encode()?;
                TicketStatementQuery { statement_handle }.as_any().encode_to_vec()
            }
            // The same bytes ask for the rows.
            _ => descriptor.cmd.to_vec(),
        };
        let asked = self.understand(command, &metadata).await?;
        let schema = self.schema(&asked).await?;
        // No location: the rows come over this same connection.
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
        let info = FlightInfo::new().try_with_schema(&schema).map_err(malformed)?;
        Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(descriptor)))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let (metadata, _, descriptor) = request.into_parts();
        let asked = self.understand(command(&descriptor.cmd)?, &metadata).await?;
        let schema = self.schema(&asked).await?;
        let schema = SchemaAsIpc::new(&schema, &IpcWriteOptions::default()).try_into();
        Ok(Response::new(schema.map_err(malformed)?))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let (metadata, _, ticket) = request.into_parts();
        let asked = match ticket.ticket.trim_ascii_start().first() {
            Some(b'{') => {
                let (database, statement) = statement::of_ticket(&ticket.ticket)?;
                let Statement { sql, values } = statement;
                let database = database.map_or_else(|| self.database(&metadata), Ok)?;
                Asked::Rows { database, sql, values }
            }
            _ => self.understand(command(&ticket.ticket)?, &metadata).await?,
        };
        let encoder = FlightDataEncoderBuilder::new();
        let messages = match asked {
            Asked::Batch(batch) => {
                encoder.with_schema(batch.schema()).build(stream::iter([Ok(batch)])).boxed()
            }
            Asked::Rows { database, sql, values } => {
                let exists = (self.exists)(&database);
                let rows = self.engine.query(&database, &sql, values, exists).await.map_err(status)?;
                let schema = Arc::clone(rows.schema());
                let rows = rows.map_err(|error| FlightError::Tonic(Box::new(status(error))));
                encoder.with_schema(schema).build(rows).boxed()
            }
        };
        Ok(Response::new(messages.map_err(Status::from).boxed()))
    }

    /// Values for a prepared statement.
    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?;
        let descriptor = first.as_ref().and_then(|it| it.flight_descriptor.as_ref());
        let Some(descriptor) = descriptor else {
            return Err(Status::invalid_argument("the first message of DoPut has no descriptor"));
        };
        let handle = match command(&descriptor.cmd)? {
            Command::CommandPreparedStatementQuery(it) => it.prepared_statement_handle,
            other => return Err(unimplemented(other.type_url())),
        };
        let statement = Statement::decode(&handle)?;
        let all = stream::iter(first.map(Ok)).chain(messages.take(MAX_VALUE_MESSAGES));
        let statement = values::bound(statement, all.boxed()).await?;
        let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(statement.encode()?) };
        let result = PutResult { app_metadata: result.encode_to_vec().into() };
        Ok(Response::new(stream::iter([Ok(result)]).boxed()))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let (metadata, _, action) = request.into_parts();
        match action.r#type.as_str() {
            CREATE => {
                let asked: ActionCreatePreparedStatementRequest = unpack(&action.body)?;
                let statement = Statement::new(&asked.query)?;
                let database = self.database(&metadata)?;
                let exists = (self.exists)(&database);
                let described = self.engine.describe(&database, &statement.sql, HashMap::new(), exists).await;
                let described = described.map_err(status)?;
                let result = ActionCreatePreparedStatementResult {
                    prepared_statement_handle: statement.encode()?,
                    dataset_schema: encoded(&sent(&described.columns))?,
                    parameter_schema: encoded(&described.parameters)?,
                };
                let result = arrow_flight::Result::new(result.as_any().encode_to_vec());
                Ok(Response::new(stream::iter([Ok(result)]).boxed()))
            }
            CLOSE => {
                let _: ActionClosePreparedStatementRequest = unpack(&action.body)?;
                Ok(Response::new(stream::empty().boxed()))
            }
            other => Err(unimplemented(other)),
        }
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let actions = [(CREATE, "prepares a query"), (CLOSE, "does nothing: nothing is kept")];
        let actions = actions.map(|(name, description)| {
            Ok(ActionType { r#type: name.to_owned(), description: description.to_owned() })
        });
        Ok(Response::new(stream::iter(actions).boxed()))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(unimplemented("ListFlights"))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(unimplemented("PollFlightInfo"))
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(unimplemented("DoExchange"))
    }
}

/// The actions of Flight SQL that are understood.
const CREATE: &str = "CreatePreparedStatement";
/// See [`CREATE`].
const CLOSE: &str = "ClosePreparedStatement";

/// Arrow's client for Go leaves the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `Basic …` with a token for password as `Bearer TOKEN`.
fn bearer(header: &str) -> Option<String> {
    let decoded = BASE64.decode(header.strip_prefix("Basic ")?).ok()?;
    let (_, token) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(format!("Bearer {token}"))
}

fn command(bytes: &[u8]) -> Result<Command, Status> {
    let any = Any::decode(bytes).ok().filter(|any| !any.type_url.is_empty());
    let Some(any) = any else {
        let message = "this is neither a command of Flight SQL nor a ticket like \
                       {\"database\":\"kvmetry\",\"sql_query\":\"SELECT …\",\"query_type\":\"sql\"}";
        return Err(Status::invalid_argument(message));
    };
    Command::try_from(any).map_err(malformed)
}

fn unpack<T: arrow_flight::sql::ProstMessageExt>(bytes: &[u8]) -> Result<T, Status> {
    let any = Any::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let message = any.unpack().map_err(malformed)?;
    message.ok_or_else(|| Status::invalid_argument(format!("the action's body is no {}", T::type_url())))
}

fn encoded(schema: &Schema) -> Result<Bytes, Status> {
    let message: IpcMessage =
        SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into().map_err(malformed)?;
    Ok(message.0)
}

/// `name`: a command's type, an action or a method.
fn unimplemented(name: &str) -> Status {
    let name = name.rsplit('.').next().unwrap_or(name);
    Status::unimplemented(format!(
        "{name:?} is not supported here; queries, prepared or not, and catalogs are"
    ))
}

fn malformed(error: ArrowError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn status(error: QueryError) -> Status {
    let code = match &error {
        QueryError::UnknownDatabase(_) => Code::NotFound,
        QueryError::UnknownTable(_)
        | QueryError::UnknownColumn(_)
        | QueryError::ManyStatements
        | QueryError::NotReadOnly
        | QueryError::TooLong { .. }
        | QueryError::Invalid(_) => Code::InvalidArgument,
        QueryError::TooSlow { .. } => Code::DeadlineExceeded,
        QueryError::TooManyRows { .. } | QueryError::TooMuchMemory(_) => Code::ResourceExhausted,
        QueryError::Failed(_) | QueryError::Panicked(_) => Code::Internal,
        QueryError::Ended => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}
