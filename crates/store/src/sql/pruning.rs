//! Which times a query can want, from its WHERE clause: what else there is need not be opened.

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use crate::memory::Times;
use crate::schema::TIME;

/// The times that rows must have for these filters, all of which hold. Wider is allowed.
pub(super) fn wanted(filters: &[Expr]) -> Times {
    filters.iter().fold((i64::MIN, i64::MAX), narrow)
}

fn narrow(times: Times, filter: &Expr) -> Times {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => narrow(narrow(times, left), right),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (column_time(left), literal(right)) {
            (true, Some(at)) => bound(times, *op, at),
            _ => match (op.swap(), literal(left), column_time(right)) {
                (Some(op), Some(at), true) => bound(times, op, at),
                _ => times,
            },
        },
        Expr::Between(between) if !between.negated && column_time(&between.expr) => {
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

fn column_time(expr: &Expr) -> bool {
    matches!(expr, Expr::Column(column) if column.name == TIME)
}

fn literal(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(ScalarValue::TimestampNanosecond(at, _), _) => *at,
        _ => None,
    }
}
