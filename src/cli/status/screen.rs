//! A picture that is drawn again in place, on a terminal's second screen. What was there before is back when it ends, with the last picture
//! below it.

use std::io::Write;

use super::super::output::OutputError;

/// The second screen, no cursor, long lines cut at the edge; and back.
const OPEN: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const CLOSE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// To the top left; to the end of the line, and of the screen, nothing.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";

/// A terminal that is drawn on. Dropped, in whatever way, it is as it was.
pub(super) struct Screen<W: Write> {
    out: W,
    size: fn() -> Option<(usize, usize)>,
    last: Vec<String>,
}

impl<W: Write> Screen<W> {
    pub(super) fn open(mut out: W, size: fn() -> Option<(usize, usize)>) -> Result<Self, OutputError> {
        out.write_all(OPEN.as_bytes()).and_then(|()| out.flush()).map_err(OutputError::new)?;
        Ok(Self { out, size, last: Vec::new() })
    }

    /// Draws these lines, as far as there is room.
    pub(super) fn show(&mut self, lines: Vec<String>) -> Result<(), OutputError> {
        let room = (self.size)().map_or(usize::MAX, |(_, height)| height.max(1));
        let shown: Vec<&str> = lines.iter().map(String::as_str).take(room).collect();
        // No line break behind the last one, which could stand at the bottom.
        let picture = shown.join(&format!("{REST_OF_LINE}\r\n"));
        let drawn = format!("{HOME}{picture}{REST_OF_LINE}{REST_OF_SCREEN}");
        self.last = lines;
        self.out.write_all(drawn.as_bytes()).and_then(|()| self.out.flush()).map_err(OutputError::new)
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        let last: String = self.last.iter().map(|line| format!("{line}\n")).collect();
        // A terminal that is gone need not be restored.
        drop(self.out.write_all(format!("{CLOSE}{last}").as_bytes()).and_then(|()| self.out.flush()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(n: usize) -> Vec<String> {
        (0..n).map(|n| format!("line {n}")).collect()
    }

    #[test]
    fn a_picture_is_drawn_over_the_former_and_the_terminal_is_left_as_it_was() {
        let mut out = Vec::new();
        {
            let mut screen = Screen::open(&mut out, || Some((80, 24))).expect("a Vec");
            screen.show(lines(3)).expect("a Vec");
            screen.show(lines(2)).expect("a Vec");
        }
        let said = String::from_utf8(out).expect("UTF-8");
        let (begin, rest) = said.split_at(OPEN.len());
        assert_eq!(begin, OPEN);
        let pictures: Vec<&str> = rest.split(HOME).skip(1).collect();
        assert!(pictures[0].contains("line 2") && pictures[0].ends_with(REST_OF_SCREEN), "{pictures:?}");
        let (second, end) = pictures[1].split_once(CLOSE).expect("it was closed");
        assert!(!second.contains("line 2") && second.ends_with(REST_OF_SCREEN), "{second:?}");
        assert_eq!(end, "line 0\nline 1\n", "what was seen last stays");
    }

    #[test]
    fn no_more_lines_are_drawn_than_there_is_room_for() {
        let mut out = Vec::new();
        let mut screen = Screen::open(&mut out, || Some((80, 2))).expect("a Vec");
        screen.show(lines(5)).expect("a Vec");
        drop(screen);
        let said = String::from_utf8(out).expect("UTF-8");
        let (drawn, after) = said.split_once(CLOSE).expect("it was closed");
        assert!(drawn.contains("line 1") && !drawn.contains("line 2") && drawn.matches('\n').count() == 1, "{drawn:?}");
        assert!(after.contains("line 4"));
    }
}
