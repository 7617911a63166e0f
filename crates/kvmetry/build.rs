//! Has the pages embedded anew when they were built anew (`make web`): their files have other names then.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../web/dist");
}
