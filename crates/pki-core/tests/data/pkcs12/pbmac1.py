"""MACs of RFC 9579 in the place of that of `openssl-default.p12`; see README.md."""

import hashlib
import hmac

def tlv(t,v):
    n=len(v)
    l=bytes([n]) if n<128 else (bytes([0x81,n]) if n<256 else b'\x82'+n.to_bytes(2,'big'))
    return bytes([t])+l+v
def oid(h): return tlv(6,bytes.fromhex(h))
def rd(b,i=0):
    n=b[i+1]; h=2
    if n&0x80: k=n&0x7f; n=int.from_bytes(b[i+2:i+2+k],'big'); h=2+k
    return b[i],b[i+h:i+h+n],i+h+n
pfx=rd(open('openssl-default.p12','rb').read())[1]
_,v,i=rd(pfx); start=i; _,content,j=rd(pfx,i); whole=pfx[start:j]
_,o,k=rd(content); _,ex,_=rd(content,k); _,safe,_=rd(ex)
H={'sha256':'2a864886f70d0209','sha512':'2a864886f70d020b'}
def make(name,prf,mac,length,with_length=True):
    salt=b'\x5a'*16; it=4096
    key=hashlib.pbkdf2_hmac(prf,b'secret',salt,it,length)
    digest=hmac.new(key,safe,mac).digest()
    params=tlv(4,salt)+tlv(2,it.to_bytes(2,'big'))+(tlv(2,bytes([length])) if with_length else b'')+tlv(0x30,oid(H[prf])+b'\x05\0')
    kdf=tlv(0x30,oid('2a864886f70d01050c')+tlv(0x30,params))
    alg=tlv(0x30,oid('2a864886f70d01050e')+tlv(0x30,kdf+tlv(0x30,oid(H[mac])+b'\x05\0')))
    macdata=tlv(0x30,tlv(0x30,alg+tlv(4,digest))+tlv(4,b'not used')+tlv(2,b'\x01'))
    open(name,'wb').write(tlv(0x30,tlv(2,b'\x03')+whole+macdata))
make('pbmac1-sha256.p12','sha256','sha256',32)
make('pbmac1-sha512-sha256.p12','sha512','sha256',32)
make('pbmac1-sha512.p12','sha512','sha512',64)
make('pbmac1-no-length.p12','sha256','sha256',32,False)
