//! Access checks by PHP: which commands run, how many, and what their outcome means.
