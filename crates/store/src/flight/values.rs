//! Values for a prepared statement, as DoPut brings them: Arrow's IPC messages (`Message.fbs`, `Schema.fbs`), which anybody
//! who may read can write as they like.
//!
//! Arrow's reader believes the lengths that it is told: it makes room for what a compressed buffer says of itself, and
//! panics beyond a message's end. So whatever could be larger than its message is refused before it is decoded.

use std::panic::AssertUnwindSafe;

use arrow::ipc::root_as_message;
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tonic::Status;

use super::statement::Statement;

/// Gives a statement the values of the one row that these messages bring, if they bring one.
///
/// # Errors
/// More than one row, compressed or malformed messages, a value that no parameter can be.
pub(super) async fn bound(
    statement: Statement,
    messages: BoxStream<'static, Result<FlightData, Status>>,
) -> Result<Statement, Status> {
    // What Arrow does not expect is the writer's fault, too.
    let reading = AssertUnwindSafe(read(statement, messages)).catch_unwind();
    reading.await.unwrap_or_else(|_| Err(Status::invalid_argument("the values are malformed")))
}

async fn read(
    mut statement: Statement,
    messages: BoxStream<'static, Result<FlightData, Status>>,
) -> Result<Statement, Status> {
    let checked = messages.map(|message| message.and_then(|it| check(&it).map(|()| it)));
    let checked = checked.map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(checked);
    let mut is_bound = false;
    while let Some(batch) = batches.try_next().await.map_err(refused)? {
        if batch.num_rows() == 0 {
            continue;
        }
        if is_bound {
            return Err(many_rows());
        }
        statement.bind(&batch)?;
        is_bound = true;
    }
    Ok(statement)
}

fn refused(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => Status::invalid_argument(format!("the values are malformed: {other}")),
    }
}

fn many_rows() -> Status {
    Status::invalid_argument("a query takes one row of values")
}

/// Refuses a message that could become larger than it is.
fn check(message: &FlightData) -> Result<(), Status> {
    let header = root_as_message(&message.data_header)
        .map_err(|error| Status::invalid_argument(format!("the values are malformed: {error}")))?;
    let (rows, dictionary) = (header.header_as_record_batch(), header.header_as_dictionary_batch());
    if rows.is_some_and(|it| it.length() > 1) {
        return Err(many_rows());
    }
    // Put together, they are longer than each.
    if dictionary.is_some_and(|it| it.isDelta()) {
        return Err(Status::invalid_argument("a dictionary of values comes whole: not as a delta"));
    }
    let Some(batch) = rows.or_else(|| dictionary?.data()) else { return Ok(()) };
    if batch.compression().is_some() {
        return Err(Status::invalid_argument("values come uncompressed: one row is small"));
    }
    let end = |offset: i64, len: i64| u64::try_from(offset).ok()?.checked_add(u64::try_from(len).ok()?);
    let body = message.data_body.len() as u64;
    let mut buffers = batch.buffers().into_iter().flatten();
    if buffers.any(|it| end(it.offset(), it.length()).is_none_or(|end| end > body)) {
        return Err(Status::invalid_argument("the values are malformed: a buffer ends beyond its message"));
    }
    Ok(())
}
