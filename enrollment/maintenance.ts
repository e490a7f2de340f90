import { randomBytes } from 'node:crypto'
import { resolve } from 'node:path'
import { layout } from '#shared/layout'
import { type Backup, makeBackup } from './registry/backup.ts'
import { type Restored, restoreBackup } from './registry/restore.ts'

/** What is done to the data directory of a plane on this machine, by commands that do not go through the admin API. */
export interface Maintenance {
  backup(request: { data: string; out: string; journal: string | null }): Backup
  restore(request: {
    data: string
    backup: string
    journal: string | null
    acceptLoss: boolean
  }): Promise<Restored>
}

export function openMaintenance(now: () => number = Date.now): Maintenance {
  const at = (data: string, journal: string | null) => {
    const directories = layout(data)
    return { layout: directories, journal: journal === null ? directories.journal : resolve(journal) }
  }
  return {
    backup: ({ data, out, journal }) => makeBackup({ ...at(data, journal), out: resolve(out), now: now() }),
    restore: ({ data, backup, journal, acceptLoss }) =>
      restoreBackup({
        ...at(data, journal),
        backup: resolve(backup),
        acceptLoss,
        epoch: randomBytes(16).toString('hex'),
        now: now(),
      }),
  }
}
