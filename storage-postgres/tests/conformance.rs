//! PostgreSQL passes the suite, with nothing ignored: each case in a schema of its own, so that
//! cases run side by side on one server.

#[path = "support/mod.rs"]
mod support;

fn main() {
    conformance_tests::main(support::Postgres::plain("postgres"))
}
