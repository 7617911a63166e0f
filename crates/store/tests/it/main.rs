//! Tests of the store from outside.

mod damage;
mod functions;
mod last;
mod limits;
mod model;
mod mutated_sql;
mod rollup;
mod support;
mod tables;
