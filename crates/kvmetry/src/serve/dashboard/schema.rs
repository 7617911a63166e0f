//! Which of the contract's columns a database has: it may be filled by an older script (`tag_style = "reference"`), by a
//! collector without `host`, or by one that does not know the newer fields.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::source::{Params, Source, SourceError, some};

/// The columns of the tables that there are, each with whether its numbers have no sign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schema(BTreeMap<String, BTreeMap<String, bool>>);

#[derive(Deserialize)]
struct Row {
    table_name: String,
    column_name: String,
    data_type: String,
}

const COLUMNS: &str = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'iox' \
                       AND (table_name LIKE 'vm_%' OR table_name LIKE 'kvmetry_%')";

/// What may be in a database of its own.
const DEVICES: &str = "vm_devices";

impl Schema {
    /// # Errors
    /// The source's.
    pub(crate) async fn of(source: &Source) -> Result<Self, SourceError> {
        let of = async |table| source.rows::<Row>(table, COLUMNS, Params::new()).await;
        let mut schema = Self::default();
        let is_of_device = |it: &Row| it.table_name.starts_with(DEVICES);
        if source.keeps_devices_apart() {
            // That database may be there later than the other.
            let devices = some(of(DEVICES).await)?;
            schema.add(devices.into_iter().filter(is_of_device));
            schema.add(of("").await?.into_iter().filter(|it| !is_of_device(it)));
        } else {
            schema.add(of("").await?.into_iter());
        }
        Ok(schema)
    }

    fn add(&mut self, rows: impl Iterator<Item = Row>) {
        for Row { table_name, column_name, data_type } in rows {
            let is_unsigned = data_type.starts_with("UInt");
            self.0.entry(table_name).or_default().insert(column_name, is_unsigned);
        }
    }

    /// Whether there is this table.
    pub(crate) fn has_table(&self, table: &str) -> bool {
        self.0.contains_key(table)
    }

    /// Whether the table has this column.
    pub(crate) fn has(&self, table: &str, column: &str) -> bool {
        self.0.get(table).is_some_and(|it| it.contains_key(column))
    }

    /// A field of whole numbers or floats as SQL; null where there is none. Two of them can be subtracted.
    pub(crate) fn field(&self, table: &str, name: &str) -> String {
        match self.0.get(table).and_then(|it| it.get(name)) {
            None => "CAST(NULL AS BIGINT)".to_owned(),
            Some(false) => format!("\"{name}\""),
            // Below 0 they would begin anew at the top.
            Some(true) => format!("CAST(\"{name}\" AS DOUBLE)"),
        }
    }

    /// The VM's UUID.
    pub(crate) fn uuid(&self, table: &str) -> String {
        self.tag(table, &["uuid", "UUID"])
    }

    /// The VM's name.
    pub(crate) fn name(&self, table: &str) -> String {
        self.tag(table, &["name", "Dom"])
    }

    /// A tag under whatever of these names it has; null where it has none.
    pub(crate) fn tag(&self, table: &str, names: &[&str]) -> String {
        let there: Vec<_> = names.iter().filter_map(|it| self.column(table, it)).collect();
        match there.len() {
            0 => "CAST(NULL AS VARCHAR)".to_owned(),
            1 => there.concat(),
            // The style was changed: each line has one of them.
            _ => format!("coalesce({})", there.join(", ")),
        }
    }

    fn column(&self, table: &str, name: &str) -> Option<String> {
        self.has(table, name).then(|| format!("\"{name}\""))
    }
}
