//! Taking the place of the unit that an administrator wrote.
