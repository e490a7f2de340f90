import type { Sqlite } from '#shared/sqlite'

/** What is known of devices beside id and key, from manifests and operators, for those parts of the registry that read or write it within an intent. */
export function openAttributes(db: Sqlite) {
  const select = db.prepare<[number], { name: string; value: string }>(
    'SELECT name, value FROM device_attributes WHERE device = ? ORDER BY name',
  )
  const insert = db.prepare<[number, string, string]>(
    'INSERT INTO device_attributes (device, name, value) VALUES (?, ?, ?)',
  )
  const remove = db.prepare<[number, string]>('DELETE FROM device_attributes WHERE device = ? AND name = ?')
  return {
    of: (device: number): Record<string, string> =>
      Object.fromEntries(select.all(device).map(({ name, value }) => [name, value])),
    /** An empty value takes the attribute away. */
    set(device: number, attributes: Readonly<Record<string, string>>): void {
      for (const [name, value] of Object.entries(attributes)) {
        remove.run(device, name)
        if (value !== '') insert.run(device, name, value)
      }
    },
    add(device: number, attributes: Readonly<Record<string, string>>): void {
      for (const [name, value] of Object.entries(attributes)) insert.run(device, name, value)
    },
  }
}
export type Attributes = ReturnType<typeof openAttributes>
