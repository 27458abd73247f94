//! A real Chromium with the demo's page.
