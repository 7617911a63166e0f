//! Tests of the store from outside.

mod damage;
mod functions;
mod last;
mod model;
mod rollup;
mod support;
