//! Behind the proxies that administrators use, configured as documented.
