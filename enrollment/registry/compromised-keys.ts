import type { Sqlite } from '#shared/sqlite'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

/** Puts a key on the list; true when it was not there. Within the caller's transaction. */
export type AddCompromised = (key: string, from: { source: string; now: number }) => boolean

export function prepareAddCompromised(db: Sqlite): AddCompromised {
  const insert = db.prepare<[string, string, number]>(
    'INSERT OR IGNORE INTO compromised_keys VALUES (?, ?, ?)',
  )
  return (key, { source, now }) => insert.run(key, source, now).changes === 1
}

/** Keys that somebody else may have. The list is only added to: a key does not become secret again. */
export function openCompromisedKeys({
  store,
}: {
  store: Store
}): Pick<Registry, 'compromiseKeys' | 'listCompromisedKeys'> {
  const add = prepareAddCompromised(store.db)
  const users = store.db.prepare<[string], { id: string }>(
    `SELECT DISTINCT d.id FROM certificates c JOIN devices d ON d.row = c.device
     WHERE c.spki = ? AND c.state IN ('issued', 'active')`,
  )
  const list = store.db.prepare<[string, number], { key: string; source: string; createdAt: number }>(
    'SELECT spki AS key, source, created_at AS createdAt FROM compromised_keys WHERE spki > ? ORDER BY spki LIMIT ?',
  )
  return {
    compromiseKeys: (keys, act) =>
      store.write(act, (log) => {
        const added = keys.filter((key) => add(key, { source: act.by, now: act.now })).length
        const devices = new Set(keys.flatMap((key) => users.all(key).map(({ id }) => id)))
        if (added > 0) log.audit({ action: 'key.compromise', subject: `keys:${added} first:${keys[0]}` })
        return { added, known: keys.length - added, devices: [...devices] }
      }),
    listCompromisedKeys: ({ after, limit }) =>
      store.read(() => {
        const rows = list.all(after ?? '', limit + 1)
        const keys = rows.slice(0, limit)
        return { keys, next: rows.length > limit ? (keys.at(-1)?.key ?? null) : null }
      }),
  }
}
