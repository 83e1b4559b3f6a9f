//! The results of a check: as data, and in the forms that CI systems show.

mod annotations;
mod junit;
mod results;
mod summary;

pub use annotations::annotations;
pub use junit::junit;
pub use results::{CHECK_VERSION, CaseResult, Change, Guilty, Place, Results};
pub use summary::summary;
