//! Which times a query can want, from its WHERE clause: what else there is need not be opened.

use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use crate::memory::Times;
use crate::schema::TIME;

/// The times that rows of a table must have for these filters, all of which hold. Wider is allowed.
pub(super) fn wanted(filters: &[Expr]) -> Times {
    narrow(filters, (i64::MIN, i64::MAX), &|column| column.name == TIME)
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
