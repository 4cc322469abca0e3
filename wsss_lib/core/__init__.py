"""What every stage needs: files, training, parallel work, records."""
