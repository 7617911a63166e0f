//! Tests of the store from outside.

mod model;
mod rollup;
mod support;
