"""Running the tracker repositories of 2020 to 2023, unedited, on today's packages."""
