//! Simulations: how good decisions are that nobody can try out often enough on real users.
//!
//! Everything is pure and seeded: the same seed gives the same report, whatever machine it runs on. Nothing here
//! serves anybody.

pub mod decision;
