//! Metrics, as Prometheus reads them; dashboard and alerts know no others.
