import { readdirSync } from 'node:fs'
import { basename, dirname } from 'node:path'
import Database from 'better-sqlite3'

/** The state file that serves beside a `broker.db`. */
export function stateFileOf(replica: string): string {
  const db = new Database(replica, { readonly: true })
  const generation = db.prepare('SELECT generation FROM replica').pluck().get()
  db.close()
  return `${replica}-state-${generation}`
}

/** How many state files there are. */
export function countStates(replica: string): number {
  const prefix = `${basename(replica)}-state-`
  return readdirSync(dirname(replica)).filter((name) => name.startsWith(prefix) && /-\d+$/.test(name)).length
}
