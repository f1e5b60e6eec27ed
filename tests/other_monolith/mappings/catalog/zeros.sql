SELECT id, name FROM asset WHERE name = 'no such'
