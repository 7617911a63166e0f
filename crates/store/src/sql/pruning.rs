//! Which times and series a query can want, from its WHERE clause: what else there is need not be opened.

use std::collections::BTreeSet;

use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use crate::memory::Times;
use crate::schema::TIME;

/// The times that rows of a table must have for these filters, all of which hold. Wider is allowed.
pub(super) fn wanted(filters: &[Expr]) -> Times {
    narrow(filters, (i64::MIN, i64::MAX), &|column| column.name == TIME)
}

/// The tags that rows of a table must have for these filters, all of which hold: name and value. Fewer are allowed.
pub(super) fn wanted_tags(filters: &[Expr], tags: &BTreeSet<String>) -> Vec<(String, String)> {
    let parts = filters.iter().flat_map(split_conjunction);
    let of = |filter: &Expr| {
        let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = filter else { return None };
        let (column, value) = match (&**left, &**right) {
            (Expr::Column(column), Expr::Literal(value, _))
            | (Expr::Literal(value, _), Expr::Column(column)) => (column, value),
            _ => return None,
        };
        let value = value.try_as_str()??;
        tags.contains(&column.name).then(|| (column.name.clone(), value.to_owned()))
    };
    parts.filter_map(of).collect()
}

/// `times`, as far as these filters want them of the column that `is_time` says yes to.
pub(super) fn narrow(filters: &[Expr], times: Times, is_time: &dyn Fn(&Column) -> bool) -> Times {
    filters.iter().fold(times, |times, filter| narrow_by(filter, times, is_time))
}

fn narrow_by(filter: &Expr, times: Times, is_time_column: &dyn Fn(&Column) -> bool) -> Times {
    let is_time = |expr: &Expr| matches!(expr, Expr::Column(column) if is_time_column(column));
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            narrow_by(right, narrow_by(left, times, is_time_column), is_time_column)
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (is_time(left), literal(right)) {
            (true, Some(at)) => bound(times, *op, at),
            _ => match (op.swap(), literal(left), is_time(right)) {
                (Some(op), Some(at), true) => bound(times, op, at),
                _ => times,
            },
        },
        Expr::Between(between) if !between.negated && is_time(&between.expr) => {
            let low = literal(&between.low).map_or(times, |at| bound(times, Operator::GtEq, at));
            literal(&between.high).map_or(low, |at| bound(low, Operator::LtEq, at))
        }
        _ => times,
    }
}

fn bound((low, high): Times, op: Operator, at: i64) -> Times {
    match op {
        Operator::Gt => (low.max(at.saturating_add(1)), high),
        Operator::GtEq => (low.max(at), high),
        Operator::Lt => (low, high.min(at.saturating_sub(1))),
        Operator::LtEq => (low, high.min(at)),
        Operator::Eq => (low.max(at), high.min(at)),
        _ => (low, high),
    }
}

fn literal(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(ScalarValue::TimestampNanosecond(at, _), _) => *at,
        _ => None,
    }
}
