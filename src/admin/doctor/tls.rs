//! Whether the service's user can read the daemon's TLS certificate and key.

use super::report::Finding;
use crate::admin::doctor::context::Context;
use crate::daemon::tls::Acceptor;
use crate::platform::exit::Result;
use crate::platform::sys;

const STEP: &str = "tls";

pub(super) fn examine(context: &Context) -> Finding {
    let Some(files) = &context.settings.tls.value else {
        return Finding::ok(STEP, "The daemon does not terminate TLS and needs no certificate");
    };
    let (root, identity) = (context.espocrm.root(), context.espocrm.identity());
    let is_service = sys::is_root() || identity.owns(&root.join("data"));
    judge(Acceptor::load(root, files, identity).map(drop), identity.name(), is_service)
}

/// `is_service`: whether the service most likely runs as this user.
fn judge(loaded: Result<()>, user: &str, is_service: bool) -> Finding {
    match loaded {
        Ok(()) => Finding::ok(STEP, format!("User {user} can read the TLS certificate and key")),
        Err(error) if is_service => Finding::failure(
            STEP,
            format!("User {user} cannot use the TLS certificate or key"),
            format!("{error}\nThe daemon cannot start without them."),
        ),
        Err(error) => Finding::unknown(
            STEP,
            format!(
                "TLS certificate: to test it as the service's user, run the doctor as root. {error}"
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
    fn an_unreadable_certificate_is_a_failure_for_the_services_user_only() {
        let failed = || Err(Exit::error("No."));
        assert!(judge(Ok(()), "web", false).is_ok());
        assert_eq!(judge(failed(), "web", true).state, State::Failure);
        assert_eq!(judge(failed(), "ann", false).state, State::Unknown);
    }
}
