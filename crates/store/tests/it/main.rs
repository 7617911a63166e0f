//! Tests of the store from outside.

mod model;
mod support;
