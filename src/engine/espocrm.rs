//! EspoCRM's data: topic categories, entity types, versions, and the messages of its PHP code.

pub mod category;
pub mod entity_types;
pub mod submission;
pub mod version;
