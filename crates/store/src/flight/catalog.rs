//! What Flight SQL's catalog is asked. A database's tables stand in the schema `iox` of the catalog `public`, as in
//! InfluxDB 3.

use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow_flight::error::Result;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{Command, CommandGetTables, SqlInfo};
use tonic::Status;

use super::{sent, unimplemented};
use crate::sql::{CATALOG, INFORMATION_SCHEMA, ListedTable, SCHEMA};

/// The types of tables, as `information_schema` calls them.
const TABLE: &str = "BASE TABLE";
/// See [`TABLE`].
const VIEW: &str = "VIEW";

static SQL_INFO: LazyLock<Result<SqlInfoData>> = LazyLock::new(|| {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "kvmetry");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    // `SqlSupportedTransaction::None`: there is nothing to undo.
    info.append(SqlInfo::FlightSqlServerTransaction, 0_i32);
    info.append(SqlInfo::FlightSqlServerCancel, false);
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, false);
    info.append(SqlInfo::SqlDdlTable, false);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.build()
});

/// What needs no database.
pub(super) fn answer(command: Command) -> std::result::Result<RecordBatch, Status> {
    match command {
        Command::CommandGetCatalogs(it) => {
            let mut catalogs = it.into_builder();
            catalogs.append(CATALOG);
            catalogs.build()
        }
        Command::CommandGetDbSchemas(it) => {
            let mut schemas = it.into_builder();
            schemas.append(CATALOG, INFORMATION_SCHEMA);
            schemas.append(CATALOG, SCHEMA);
            schemas.build()
        }
        Command::CommandGetTableTypes(it) => {
            let mut types = it.into_builder();
            types.append(TABLE);
            types.append(VIEW);
            types.build()
        }
        Command::CommandGetSqlInfo(it) => match &*SQL_INFO {
            Ok(info) => it.into_builder(info).build(),
            Err(error) => return Err(Status::internal(error.to_string())),
        },
        other => return Err(unimplemented(other.type_url())),
    }
    .map_err(Status::from)
}

/// A database's tables, those of them that were asked for.
pub(super) fn tables(asked: CommandGetTables, tables: &[ListedTable]) -> Result<RecordBatch> {
    let mut found = asked.into_builder();
    for table in tables {
        let kind = if table.schema == INFORMATION_SCHEMA { VIEW } else { TABLE };
        found.append(CATALOG, &table.schema, &table.name, kind, &sent(&table.columns))?;
    }
    found.build()
}
