import { readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { firstOf, segmentPaths } from './journal-lines.ts'

interface BackupNote {
  readonly madeAt: number
  readonly commit: number
}

/**
 * Removes the segments that no backup needs any more: of the backups since `before`, or of the newest one when all are
 * older. Without a backup everything stays. Returns how many segments went.
 */
export function pruneJournal(directory: string, before: number): number {
  const notes = readdirSync(directory)
    .filter((name) => /^backup-\d+\.json$/.test(name))
    .map((name) => ({ path: join(directory, name), ...readNote(join(directory, name)) }))
    .sort((a, b) => a.madeAt - b.madeAt)
  const newest = notes.at(-1)
  if (newest === undefined) return 0
  const kept = notes.filter((note) => note.madeAt >= before || note === newest)
  const needed = Math.min(...kept.map(({ commit }) => commit))
  const paths = segmentPaths(directory)
  const unneeded = paths.filter((_, index) => firstOf(paths[index + 1] ?? '') <= needed + 1)
  for (const path of unneeded) rmSync(path)
  for (const { path } of notes.filter((note) => !kept.includes(note))) rmSync(path)
  return unneeded.length
}

function readNote(path: string): BackupNote {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as BackupNote // written by backup.ts
  } catch {
    return { madeAt: 0, commit: 0 } // it says nothing: everything stays
  }
}
