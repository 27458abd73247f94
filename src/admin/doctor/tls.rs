//! Whether the service's user can use the certificate of the daemon's own TLS.

use super::report::Finding;
use crate::admin::doctor::context::Context;
use crate::daemon::tls::Acceptor;
use crate::platform::exit::Result;
use crate::platform::sys;

const STEP: &str = "tls";

pub(super) fn look(context: &Context) -> Finding {
    let Some(files) = &context.settings.tls.value else {
        return Finding::good(
            STEP,
            "The daemon does not do TLS itself, so that it needs no certificate",
        );
    };
    let (root, identity) = (context.espocrm.root(), context.espocrm.identity());
    let is_service = sys::is_root() || identity.owns(&root.join("data"));
    judge(Acceptor::load(root, files, identity).map(drop), identity.name(), is_service)
}

/// `is_service`: whether the service most likely runs as this user.
fn judge(loaded: Result<()>, user: &str, is_service: bool) -> Finding {
    match loaded {
        Ok(()) => Finding::good(STEP, format!("{user} can read the certificate and key for TLS")),
        Err(error) if is_service => Finding::bad(
            STEP,
            format!("The certificate or key for TLS cannot be used by {user}"),
            format!("{error}\nThe daemon does not start without it."),
        ),
        Err(error) => Finding::unknown(
            STEP,
            format!(
                "Whether the service's user can use the certificate: run the doctor as root. {error}"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;
    use crate::platform::exit::Exit;

    #[test]
    fn only_the_services_user_counts() {
        let failed = || Err(Exit::error("No."));
        assert!(judge(Ok(()), "web", false).is_good());
        assert_eq!(judge(failed(), "web", true).state, State::Bad);
        assert_eq!(judge(failed(), "ann", false).state, State::Unknown);
    }
}
