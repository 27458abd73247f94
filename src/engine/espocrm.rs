//! EspoCRM's vocabulary: its topic categories, its entity types, its versions and the messages that
//! its PHP code submits.

pub mod category;
pub mod entity_types;
pub mod submission;
pub mod version;
