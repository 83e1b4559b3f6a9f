mod baits;
mod invariants;
mod recognition;
mod subject;
