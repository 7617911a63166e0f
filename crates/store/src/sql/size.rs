//! How large a query is before it is planned: planning knows neither a time-out nor the memory pool.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::parser::{ExplainStatement, Statement};
use datafusion::sql::sqlparser::ast::{ObjectName, Query, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::QueryError;

/// Operators of a query: planning a chain of them takes time by its square.
const MAX_OPERATORS: usize = 500;
/// Tables that a query reads: planning a chain of joins takes more than the square of it. What stands in WITH is put in
/// wherever it is named, so 24 names may be millions of tables.
const MAX_RELATIONS: u64 = 50;

/// # Errors
/// [`QueryError::Invalid`] beyond a limit, with the limit.
pub(super) fn check(sql: &str, statement: &Statement) -> Result<(), QueryError> {
    // It was parsed, so it has tokens.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap_or_default();
    let operators = tokens.iter().filter(|it| is_operator(it)).count();
    if operators > MAX_OPERATORS {
        let message = format!(
            "the query has {operators} operators, at most {MAX_OPERATORS} are planned: for many values \
                               of one column write IN (…)"
        );
        return Err(QueryError::Invalid(message));
    }
    let relations = relations(statement);
    if relations > MAX_RELATIONS {
        let message = format!(
            "the query reads tables {relations} times, what stands in WITH as often as it is named: at \
                               most {MAX_RELATIONS} are planned"
        );
        return Err(QueryError::Invalid(message));
    }
    Ok(())
}

fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            matches!(word.keyword, Keyword::AND | Keyword::OR | Keyword::NOT | Keyword::UNION)
        }
        Token::Plus
        | Token::Minus
        | Token::Mul
        | Token::Div
        | Token::Mod
        | Token::StringConcat
        | Token::Eq
        | Token::Neq
        | Token::Lt
        | Token::Gt
        | Token::LtEq
        | Token::GtEq
        | Token::Pipe
        | Token::Ampersand
        | Token::Caret
        | Token::DoubleColon => true,
        _ => false,
    }
}

fn relations(statement: &Statement) -> u64 {
    let mut counter = Counter { open: vec![0], ..Counter::default() };
    match statement {
        Statement::Statement(statement) => drop(statement.visit(&mut counter)),
        Statement::Explain(ExplainStatement { statement, .. }) => return relations(statement),
        // They are no queries, and refused.
        _ => {}
    }
    counter.open.first().copied().unwrap_or_default()
}

/// Counts tables, each name of a WITH as what stands there.
#[derive(Default)]
struct Counter {
    /// Of the queries around the present place, outermost first.
    open: Vec<u64>,
    /// What was counted, by name.
    named: HashMap<String, u64>,
    /// Queries that stand in a WITH, by their place in memory, which is theirs as long as the statement is.
    in_with: HashMap<usize, String>,
}

fn place(query: &Query) -> usize {
    std::ptr::from_ref(query) as usize
}

impl Visitor for Counter {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.open.push(0);
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.in_with.insert(place(&cte.query), cte.alias.name.value.to_lowercase());
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let count = self.open.pop().unwrap_or_default();
        match self.in_with.remove(&place(query)) {
            Some(name) => drop(self.named.insert(name, count)),
            None => {
                if let Some(around) = self.open.last_mut() {
                    *around = around.saturating_add(count);
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        // However it is quoted.
        let name = relation.0.last().and_then(|it| it.as_ident()).map(|it| it.value.to_lowercase());
        let count = name.and_then(|it| self.named.get(&it).copied()).unwrap_or(1);
        if let Some(around) = self.open.last_mut() {
            *around = around.saturating_add(count.max(1));
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::only_one_statement;
    use super::*;

    #[track_caller]
    fn check_relations(sql: &str, expect: u64) {
        let statements = datafusion::sql::parser::DFParser::parse_sql(sql).unwrap();
        assert_eq!(relations(&statements[0]), expect, "{sql}");
    }

    #[test]
    fn what_stands_in_with_counts_as_often_as_it_is_named() {
        check_relations("SELECT 1", 0);
        check_relations("SELECT * FROM t", 1);
        check_relations("EXPLAIN SELECT * FROM a JOIN b USING (x) WHERE y IN (SELECT y FROM c)", 3);
        check_relations("WITH a AS (SELECT * FROM t, u) SELECT * FROM a x, a y, v", 5);
        check_relations("WITH a AS (SELECT 1), b AS (SELECT * FROM a x, a y) SELECT * FROM b x, \"B\" y", 4);
        check_relations("WITH `a` AS (SELECT * FROM t, u) SELECT * FROM `a` x, \"a\" y, a z", 6);
        check_relations("SELECT * FROM (WITH a AS (SELECT * FROM t, t u) SELECT * FROM a x, a y) z", 4);
        let doubled: String =
            (1..25).map(|n| format!(", c{n} AS (SELECT a.x FROM c{0} a, c{0} b)", n - 1)).collect();
        check_relations(&format!("WITH c0 AS (SELECT 1 x){doubled} SELECT count(*) FROM c24"), 1 << 24);
    }

    #[test]
    fn large_queries_are_refused_before_they_are_planned() {
        #[track_caller]
        fn check(sql: &str, expect: Option<&str>) {
            let found = only_one_statement(sql).err().map(|it| it.to_string());
            assert_eq!(found.is_some(), expect.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(expect.unwrap_or_default()));
        }
        check(&format!("SELECT 1{}", "+1".repeat(500)), None);
        check(&format!("SELECT 1{}", "+1".repeat(501)), Some("501 operators, at most 500"));
        let values = vec!["'7fde'"; 6_000].join(", ");
        check(&format!("SELECT * FROM t WHERE uuid IN ({values})"), None);
        check("WITH a AS (SELECT * FROM t, t u, t v) SELECT * FROM a", None);
    }
}
