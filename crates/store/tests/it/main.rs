//! Tests of the store from outside.

mod last;
mod model;
mod rollup;
mod support;
