//! The command-line program; see `espocrm-websocket --help`.

use std::process::ExitCode;

use espocrm_websocket::cli::Command;
use espocrm_websocket::engine::printable::Printable;
use espocrm_websocket::platform::exit::Exit;
use espocrm_websocket::platform::logging::print_error;

fn main() -> ExitCode {
    let command = match Command::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            // The message contains arguments.
            let error = Printable(error);
            print_error(&format!("{error}\nTry: espocrm-websocket --help"));
            return ExitCode::from(2);
        }
    };
    match command.execute() {
        Ok(()) | Err(Exit::Stopped) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
