"""EmojiScenes: a captioned data set of emoji by real artists, with encoders and a scorer."""
